"""What XTuner trained, as what twinlens reads: an adapter in PEFT's layout, or the folder of an image run."""

from dataclasses import replace
from pathlib import Path

from llm.internlm_adapter import is_fused, split_adapter
from llm.loading import read_config
from llm.saving import check_destination, new_folder
from tuning.errors import ConfigError, ModelError
from tuning.files import write_atomically
from tuning.lora import PREFIX, layers_of, lora_config, write_adapter
from tuning.run_dir import RunDir
from tuning.settings import Lora
from twinlens.start import to_yaml, with_full_paths
from twinlens.task_files import AnyTask
from vlm.projector import Projector, save_projector
from vlm.settings import ImageTask
from vlm.start import Start, check_scales, in_tower
from vlm.start_files import read_parts
from vlm.tower import TOWER


def read_checkpoint(checkpoint: Path, task: AnyTask) -> Start:
    """What a `.pth` of XTuner's holds, held against the task it was trained with; alpha is the task's where the file
    does not tell.

    Args:
        checkpoint: the file, or the folder that DeepSpeed wrote.

    Raises:
        ModelError: it cannot be read, holds a whole model, or an adapter of another rank or alpha.
        ConfigError: the task trains other parts than it holds.
    """
    if not checkpoint.exists():
        raise ModelError(f"{checkpoint}: no such file or folder; give the iter_N.pth that XTuner wrote.")
    parts = read_parts(str(checkpoint))
    image = isinstance(task, ImageTask)
    tower_lora = task.tower_lora if isinstance(task, ImageTask) else None
    tuned = task.stage == "tune" if isinstance(task, ImageTask) else True
    for what, held, trained in (
        ("projector", bool(parts.projector), image),
        ("adapter of the language model", parts.language is not None, tuned),
        ("adapter of a tower", parts.tower is not None, tower_lora is not None),
    ):
        if held != trained:
            fault = f"has no {what}, which its config trains" if trained else f"has the {what}, which its config leaves"
            raise ConfigError(f"{checkpoint}: {fault}; give the config that it was trained with.")
    check_scales(parts, str(checkpoint), task.lora, tower_lora)
    tower_alpha = tower_lora.alpha if tower_lora else None
    return replace(parts, language_alpha=task.lora.alpha if tuned else None, tower_alpha=tower_alpha)


def convert_checkpoint(parts: Start, task: AnyTask, destination: Path) -> None:
    """Write an adapter's folder, or of an image task a run's with its `task.yaml`; weights in fp32, as they are.

    Raises:
        ConfigError: the destination is there already.
        ModelError: an adapter on InternLM2's fused layers has a base that is missing or of other shapes.
        DeviceError: the destination cannot be written.
    """
    check_destination(destination, 0)
    language = parts.language
    if language is not None and is_fused(language):
        language = split_adapter(language, read_config(task.source), parts.source)
    parts = replace(parts, language=language)
    with new_folder(destination) as unfinished:
        if isinstance(task, ImageTask):
            _write_run(parts, task, RunDir(unfinished))
        elif language is not None:
            config = lora_config(task.lora, layers_of(language), "CAUSAL_LM")
            write_adapter(language, config, unfinished, with_full_paths(task).model, task.revision)


def _write_run(parts: Start, task: ImageTask, run: RunDir) -> None:
    task = task.model_copy(update={"start": None})  # what it started from is in what it learned
    run.adapter.mkdir()
    if parts.language is not None:
        lora = _on(task.lora, layers_of(parts.language))
        task = task.model_copy(update={"lora": lora})
        config = lora_config(lora, list(lora.targets), "CAUSAL_LM")
        write_adapter(parts.language, config, run.adapter, task.model, task.revision)
    if parts.tower is not None and task.tower_lora is not None:
        tower = {PREFIX + in_tower(name): value for name, value in parts.tower.items()}
        lora = _on(task.tower_lora, layers_of(tower))
        task = task.model_copy(update={"tower_lora": lora})
        write_adapter(tower, lora_config(lora, list(lora.targets), None), run.adapter / TOWER, task.tower)
    hidden, width = parts.projector["linear_1.weight"].shape
    projector = Projector(width, hidden)
    projector.load_state_dict(parts.projector)
    save_projector(projector, run.adapter)
    write_atomically(run.task, to_yaml(with_full_paths(task)))


def _on(lora: Lora, targets: list[str]) -> Lora:
    return lora.model_copy(update={"targets": tuple(targets)})
