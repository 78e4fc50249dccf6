"""What XTuner trained, as what twinlens reads: an adapter in PEFT's layout, a model, or the folder of an image run."""

from dataclasses import replace
from pathlib import Path

import torch

from llm.checkpoints.shards import refuse_misfits
from llm.export.full_model import as_published, size_of, write_published
from llm.export.saving import check_destination, new_folder
from llm.internlm.adapter import is_fused, split_adapter
from llm.loading import read_config
from tuning.atomic import write_atomically
from tuning.errors import ConfigError, ModelError
from tuning.modules.lora import PEFT_PREFIX, target_names, lora_config, write_adapter
from tuning.run_dir import RunDir
from tuning.settings import Lora
from twinlens.tasks import AnyTask, to_yaml, with_full_paths
from vlm.checkpoints.initialize import Start, check_scales, in_tower
from vlm.checkpoints.reading import read_parts
from vlm.export.layouts import write_tower
from vlm.projector import Projector, save_projector
from vlm.settings import ImageTask
from vlm.towers.registry import load_tower
from vlm.towers.tower import TOWER


def read_checkpoint(checkpoint: Path, task: AnyTask) -> Start:
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
        ("whole language model", parts.whole_language is not None, task.full_finetuning),
        ("adapter of the language model", parts.language is not None, lora is not None),
        ("whole tower", parts.whole_tower is not None, image is not None and image.whole_tower),
        ("adapter of a tower", parts.tower is not None, tower_lora is not None),
    ):
        if held != trained:
            fault = f"has no {what}, which" if trained else f"has the {what}, which is not what"
            raise ConfigError(f"{checkpoint}: {fault} its config trains; give the config that it was trained with.")
    check_scales(parts, str(checkpoint), lora, tower_lora)
    return replace(
        parts,
        language_alpha=lora.alpha if lora else None,
        tower_alpha=tower_lora.alpha if tower_lora else None,
    )


def convert_checkpoint(
    parts: Start, task: AnyTask, destination: Path, max_shard_size: str = "2GB", fp32: bool = False
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
    language, whole = parts.language, parts.whole_language
    if language is not None and is_fused(language):
        language = split_adapter(language, read_config(task.versioned_model), parts.source)
    if whole is not None:
        whole = as_published(whole, task.versioned_model, parts.source, fp32)
        check_destination(destination, size_of(whole))
    parts = replace(parts, language=language, whole_language=whole)
    with new_folder(destination) as unfinished:
        if isinstance(task, ImageTask):
            _write_run(parts, task, RunDir(unfinished), max_shard_size)
        elif whole is not None:
            write_published(whole, task.versioned_model, task.template, unfinished, max_shard_size)
        elif language is not None and task.lora is not None:
            config = lora_config(task.lora, target_names(language), "CAUSAL_LM")
            write_adapter(language, config, unfinished, with_full_paths(task).model, task.revision)


def write_whole_tower(parts: Start, name: str, folder: Path, max_shard_size: str = "2GB") -> None:
    """The tower `name` with the weights that were trained, in fp32, as a folder that is itself a tower.

    Raises:
        ModelError: they are not that tower's.
    """
    tower = load_tower(name, torch.device("cpu"), torch.float32)
    trained = {key.removeprefix("vision_model."): weight for key, weight in (parts.whole_tower or {}).items()}
    refuse_misfits(
        {key: weight.shape for key, weight in trained.items()},
        {key: tuple(value.shape) for key, value in tower.network.state_dict().items()},
        parts.source,
        "give the tower that it was trained from",
    )
    tower.network.load_state_dict({key: weight.read() for key, weight in trained.items()})
    write_tower(tower, folder, torch.float32, max_shard_size)


def _write_run(parts: Start, task: ImageTask, run: RunDir, max_shard_size: str) -> None:
    task = task.model_copy(update={"start": None})  # what it started from is in what it learned
    run.adapter.mkdir()
    if parts.language is not None and task.lora is not None:
        lora = _on(task.lora, target_names(parts.language))
        task = task.model_copy(update={"lora": lora})
        config = lora_config(lora, list(lora.targets), "CAUSAL_LM")
        write_adapter(parts.language, config, run.adapter, task.model, task.revision)
    if parts.tower is not None and task.tower_lora is not None:
        tower = {PEFT_PREFIX + in_tower(name): value for name, value in parts.tower.items()}
        lora = _on(task.tower_lora, target_names(tower))
        task = task.model_copy(update={"tower_lora": lora})
        write_adapter(tower, lora_config(lora, list(lora.targets), None), run.adapter / TOWER, task.tower)
    if parts.whole_tower is not None:
        write_whole_tower(parts, task.tower, run.adapter / TOWER, max_shard_size)
    hidden, width = parts.projector["linear_1.weight"].shape
    projector = Projector(width, hidden)
    projector.load_state_dict(parts.projector)
    save_projector(projector, run.adapter)
    if parts.whole_language is not None:
        run.model.mkdir()
        write_published(parts.whole_language, task.versioned_model, task.template, run.model, max_shard_size)
    write_atomically(run.task, to_yaml(with_full_paths(task)))


def _on(lora: Lora, targets: list[str]) -> Lora:
    return lora.model_copy(update={"targets": tuple(targets)})
