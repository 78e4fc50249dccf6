"""XTuner checkpoints: convert them to PEFT adapters, model folders or run folders."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.checkpoints.shards import check_shapes
from llm.export.full_model import to_published_weights, total_size, write_full_model
from llm.export.saving import check_destination
from llm.internlm.adapter import has_fused_qkv, split_adapter
from llm.loading import load_model_config
from tuning.atomic import atomic_folder, write_atomically
from tuning.errors import ConfigError, ModelError
from tuning.modules.lora import PEFT_PREFIX, lora_config, target_names, write_adapter
from tuning.run_dir import RunDir
from tuning.settings import Lora
from twinlens.tasks import AnyTask, to_yaml, with_absolute_paths
from vlm.checkpoints.initialize import check_rank_and_alpha, encoder_name
from vlm.checkpoints.reading import LlavaParts, read_parts
from vlm.export.layouts import save_tower
from vlm.projector import Projector, save_projector
from vlm.settings import ImageTask
from vlm.towers.registry import load_tower
from vlm.towers.tower import TOWER_FOLDER


def read_checkpoint(checkpoint: Path, task: AnyTask) -> LlavaParts:
    """The trained weights in an XTuner checkpoint, after a check against the task that it was trained with.

    Args:
        checkpoint: a `.pth` file, or the folder that DeepSpeed wrote.

    Raises:
        ModelError: it cannot be read, or an adapter in it has another rank or alpha.
        ConfigError: the task trains other parts.
    """
    if not checkpoint.exists():
        raise ModelError(f"{checkpoint}: no such file or folder; give the iter_N.pth that XTuner wrote.")
    parts = read_parts(str(checkpoint))
    image = task if isinstance(task, ImageTask) else None
    lora = task.lora if image is None or image.stage == "tune" else None
    tower_lora = image.tower_lora if image else None
    for part, present, trained in (
        ("projector", bool(parts.projector), image is not None),
        ("full language model", parts.full_language is not None, task.full_finetuning),
        ("adapter of the language model", parts.language is not None, lora is not None),
        ("full tower", parts.full_tower is not None, image is not None and image.whole_tower),
        ("adapter of the tower", parts.tower is not None, tower_lora is not None),
    ):
        if present != trained:
            fault = (
                f"has no {part}, but its config trains it"
                if trained
                else f"has the {part}, but its config does not train it"
            )
            raise ConfigError(f"{checkpoint}: {fault}; give the config of this checkpoint.")
    check_rank_and_alpha(parts, str(checkpoint), lora, tower_lora)
    return parts


def convert_checkpoint(
    parts: LlavaParts, task: AnyTask, destination: Path, max_shard_size: str = "2GB", fp32: bool = False
) -> None:
    """Write the folder of an adapter or of a full model; for an image task the run folder, with its `task.yaml`.

    Args:
        fp32: keep the weights of a full language model in fp32; the default is the 16-bit dtype of its base model.

    Raises:
        ConfigError: the destination exists.
        ModelError: a base model is missing, or the trained weights have other names or shapes.
        DeviceError: the destination cannot be written, or has too little space.
    """
    check_destination(destination, 0)
    language, full = parts.language, parts.full_language
    if language is not None and has_fused_qkv(language):
        language = split_adapter(language, load_model_config(task.versioned_model), parts.source)
    if full is not None:
        full = to_published_weights(full, task.versioned_model, parts.source, fp32)
        check_destination(destination, total_size(full))
    parts = replace(parts, language=language, full_language=full)
    with atomic_folder(destination) as unfinished:
        if isinstance(task, ImageTask):
            _write_run(parts, task, RunDir(unfinished), max_shard_size)
        else:
            save_trained_parts(parts, with_absolute_paths(task), unfinished, unfinished, max_shard_size)


def save_trained_parts(
    parts: LlavaParts, task: AnyTask, adapter: Path, model: Path, max_shard_size: str = "2GB"
) -> None:
    """Write all trained weights except a tower adapter.

    Args:
        parts: a full language model has the weight names of published checkpoints.
        adapter: folder for adapter, projector and full tower.
        model: folder for a full language model.

    Raises:
        ModelError: the weights of a full tower have other names or shapes than the tower of the task.
    """
    if parts.language is not None and task.lora is not None:
        config = lora_config(task.lora, target_names(parts.language), "CAUSAL_LM")
        write_adapter(parts.language, config, adapter, task.model, task.revision)
    if isinstance(task, ImageTask):
        save_projector(trained_projector(parts), adapter)
        if parts.full_tower is not None:
            _write_full_tower(parts, task.tower, adapter / TOWER_FOLDER, max_shard_size)
    if parts.full_language is not None:
        with atomic_folder(model) as folder:
            write_full_model(parts.full_language, task.versioned_model, task.template, folder, max_shard_size)


def trained_projector(parts: LlavaParts) -> Projector:
    """The projector with its trained weights."""
    hidden, width = parts.projector["linear_1.weight"].shape
    projector = Projector(width, hidden)
    projector.load_state_dict(parts.projector)
    return projector


def _write_full_tower(parts: LlavaParts, name: str, folder: Path, max_shard_size: str) -> None:
    """Write the tower `name` with its trained weights, in fp32."""
    tower = load_tower(name, torch.device("cpu"), torch.float32)
    trained = {key.removeprefix("vision_model."): weight for key, weight in (parts.full_tower or {}).items()}
    check_shapes(trained, tower.network.state_dict(), parts.source, "give the tower that it was trained from")
    tower.network.load_state_dict({key: weight.read() for key, weight in trained.items()})
    save_tower(tower, folder, torch.float32, max_shard_size)


def _write_run(parts: LlavaParts, task: ImageTask, run: RunDir, max_shard_size: str) -> None:
    """Write the run folder of an image task; its `task.yaml` names the layers that have adapters."""
    changes: dict[str, Any] = {"start": None}  # the trained weights include it
    if parts.language is not None and task.lora is not None:
        changes["lora"] = _with_targets(task.lora, parts.language)
    if parts.tower is not None and task.tower_lora is not None:
        tower = {PEFT_PREFIX + encoder_name(name): value for name, value in parts.tower.items()}
        changes["tower_lora"] = _with_targets(task.tower_lora, tower)
        config = lora_config(task.tower_lora, target_names(tower), None)
        write_adapter(tower, config, run.adapter / TOWER_FOLDER, task.tower)
    save_trained_parts(parts, task, run.adapter, run.model, max_shard_size)
    write_atomically(run.task, to_yaml(with_absolute_paths(task.model_copy(update=changes))))


def _with_targets(lora: Lora, weights: dict[str, Tensor]) -> Lora:
    return lora.model_copy(update={"targets": tuple(target_names(weights))})
