"""What XTuner trained, as what twinlens reads: an adapter in PEFT's layout, a model, or the folder of an image run."""

from dataclasses import replace
from pathlib import Path

import torch

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
    """What a `.pth` of XTuner's holds, held against the task it was trained with; alpha is the task's where the file
    does not tell.

    Args:
        checkpoint: the file, or the folder that DeepSpeed wrote.

    Raises:
        ModelError: it cannot be read, or holds an adapter of another rank or alpha.
        ConfigError: the task trains other parts than it holds.
    """
    if not checkpoint.exists():
        raise ModelError(f"{checkpoint}: no such file or folder; give the iter_N.pth that XTuner wrote.")
    parts = read_parts(str(checkpoint))
    image = task if isinstance(task, ImageTask) else None
    lora = task.lora if image is None or image.stage == "tune" else None
    tower_lora = image.tower_lora if image else None
    for what, held, trained in (
        ("projector", bool(parts.projector), image is not None),
        ("whole language model", parts.full_language is not None, task.full_finetuning),
        ("adapter of the language model", parts.language is not None, lora is not None),
        ("whole tower", parts.full_tower is not None, image is not None and image.whole_tower),
        ("adapter of a tower", parts.tower is not None, tower_lora is not None),
    ):
        if held != trained:
            fault = f"has no {what}, which" if trained else f"has the {what}, which is not what"
            raise ConfigError(f"{checkpoint}: {fault} its config trains; give the config that it was trained with.")
    check_rank_and_alpha(parts, str(checkpoint), lora, tower_lora)
    return replace(
        parts,
        language_alpha=lora.alpha if lora else None,
        tower_alpha=tower_lora.alpha if tower_lora else None,
    )


def convert_checkpoint(
    parts: LlavaParts, task: AnyTask, destination: Path, max_shard_size: str = "2GB", fp32: bool = False
) -> None:
    """Write the folder of an adapter or of a whole model, or of an image task a run's with its `task.yaml`.

    Args:
        fp32: a whole language model too, which is else in its base's 16 bits.

    Raises:
        ConfigError: the destination is there already.
        ModelError: a base is missing, or what was trained has other names or shapes than it.
        DeviceError: the destination cannot be written or has too little space.
    """
    check_destination(destination, 0)
    language, whole = parts.language, parts.full_language
    if language is not None and has_fused_qkv(language):
        language = split_adapter(language, load_model_config(task.versioned_model), parts.source)
    if whole is not None:
        whole = to_published_weights(whole, task.versioned_model, parts.source, fp32)
        check_destination(destination, total_size(whole))
    parts = replace(parts, language=language, full_language=whole)
    with atomic_folder(destination) as unfinished:
        if isinstance(task, ImageTask):
            _write_run(parts, task, RunDir(unfinished), max_shard_size)
        elif whole is not None:
            write_full_model(whole, task.versioned_model, task.template, unfinished, max_shard_size)
        elif language is not None and task.lora is not None:
            config = lora_config(task.lora, target_names(language), "CAUSAL_LM")
            write_adapter(language, config, unfinished, with_absolute_paths(task).model, task.revision)


def write_full_tower(parts: LlavaParts, name: str, folder: Path, max_shard_size: str = "2GB") -> None:
    """The tower `name` with the weights that were trained, in fp32, as a folder that is itself a tower.

    Raises:
        ModelError: they are not that tower's.
    """
    tower = load_tower(name, torch.device("cpu"), torch.float32)
    trained = {key.removeprefix("vision_model."): weight for key, weight in (parts.full_tower or {}).items()}
    check_shapes(
        {key: weight.shape for key, weight in trained.items()},
        {key: tuple(value.shape) for key, value in tower.network.state_dict().items()},
        parts.source,
        "give the tower that it was trained from",
    )
    tower.network.load_state_dict({key: weight.read() for key, weight in trained.items()})
    save_tower(tower, folder, torch.float32, max_shard_size)


def _write_run(parts: LlavaParts, task: ImageTask, run: RunDir, max_shard_size: str) -> None:
    task = task.model_copy(update={"start": None})  # what it started from is in what it learned
    run.adapter.mkdir()
    if parts.language is not None and task.lora is not None:
        lora = _on(task.lora, target_names(parts.language))
        task = task.model_copy(update={"lora": lora})
        config = lora_config(lora, list(lora.targets), "CAUSAL_LM")
        write_adapter(parts.language, config, run.adapter, task.model, task.revision)
    if parts.tower is not None and task.tower_lora is not None:
        tower = {PEFT_PREFIX + encoder_name(name): value for name, value in parts.tower.items()}
        lora = _on(task.tower_lora, target_names(tower))
        task = task.model_copy(update={"tower_lora": lora})
        write_adapter(tower, lora_config(lora, list(lora.targets), None), run.adapter / TOWER_FOLDER, task.tower)
    if parts.full_tower is not None:
        write_full_tower(parts, task.tower, run.adapter / TOWER_FOLDER, max_shard_size)
    hidden, width = parts.projector["linear_1.weight"].shape
    projector = Projector(width, hidden)
    projector.load_state_dict(parts.projector)
    save_projector(projector, run.adapter)
    if parts.full_language is not None:
        run.model.mkdir()
        write_full_model(parts.full_language, task.versioned_model, task.template, run.model, max_shard_size)
    write_atomically(run.task, to_yaml(with_absolute_paths(task)))


def _on(lora: Lora, targets: list[str]) -> Lora:
    return lora.model_copy(update={"targets": tuple(targets)})
