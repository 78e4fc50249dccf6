"""Start and resume runs; read DeepSpeed configurations."""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm.checkpoints.hub import parse_remote, pin_revision
from tuning.atomic import write_atomically
from tuning.errors import ConfigError
from tuning.paths import CONFIGS
from tuning.run_dir import RunDir, create_run, open_run
from twinlens.task_files import read_task
from twinlens.tasks import AnyTask, recipe_of, to_yaml, with_absolute_paths
from twinlens.xtuner.engine.environment import RUN_FOLDER as XTUNER
from vlm.settings import ImageTask

if TYPE_CHECKING:
    from tuning.training.engine import StepReport


@dataclass(frozen=True, slots=True)
class RunResult:
    """A finished run, and a report of each step that this call trained."""

    run: RunDir
    reports: "list[StepReport]"


def with_pinned_revisions(task: AnyTask) -> AnyTask:
    """The task with each hub model pinned to its current commit, so that a resumed run uses the same weights."""
    changes: dict[str, Any] = {}
    if (model := parse_remote(task.versioned_model)) is not None:
        changes["revision"] = pin_revision(model).revision
    if isinstance(task, ImageTask) and (tower := parse_remote(task.tower, "tower")) is not None:
        changes["tower"] = str(pin_revision(tower))
    return task.model_copy(update=changes)


def start(
    task: AnyTask,
    name: str,
    work_dir: Path,
    deepspeed: dict[str, Any] | None = None,
    xtuner: Path | None = None,
) -> RunResult:
    """Train a task in a new run folder `work_dir/<name>/<time>`; under torchrun the main process creates it.

    Args:
        deepspeed: a DeepSpeed configuration; None trains without DeepSpeed.
        xtuner: the virtual environment of XTuner, if XTuner is the training engine.
    """
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from tuning.modules.quantize import choose_device
    from tuning.training.environment import describe_environment

    task = with_pinned_revisions(with_absolute_paths(task))
    state = PartialState(cpu=choose_device(task.run.device).type == "cpu")
    inputs = recipe_of(task).read_inputs(task)
    paths: list[Any] = [None]
    if state.is_main_process:
        run = create_run(work_dir.resolve(), name)
        write_atomically(run.task, to_yaml(task))
        write_atomically(run.environment, json.dumps(describe_environment(), indent=2) + "\n")
        paths = [str(run.path)]
    run = RunDir(Path(broadcast_object_list(paths)[0]))
    if xtuner is not None:
        from twinlens.xtuner.engine.train import train

        return RunResult(run, train(task, inputs, run, xtuner))
    return RunResult(run, recipe_of(task).train(task, inputs, run, deepspeed=deepspeed))


def resume(path: Path, deepspeed: dict[str, Any] | None = None) -> RunResult:
    """Resume a run from its last checkpoint, with its own task.

    Raises:
        ConfigError: not a run folder, a run of XTuner, or a finished run without a checkpoint.
    """
    from accelerate import PartialState

    from tuning.modules.quantize import choose_device

    run = open_run(path.resolve())
    if (run.path / XTUNER).exists():
        raise ConfigError(f"--resume {path}: XTuner trained it and saved no checkpoint; train its task again.")
    if (run.adapter.exists() or run.model.exists()) and not run.checkpoints():
        raise ConfigError(f"--resume {path}: this run is finished and has no checkpoint; train its task again.")
    task, _ = read_task(run.task)
    PartialState(cpu=choose_device(task.run.device).type == "cpu")
    recipe = recipe_of(task)
    return RunResult(run, recipe.train(task, recipe.read_inputs(task), run, resume=True, deepspeed=deepspeed))


def deepspeed_config(name: str, task: AnyTask) -> dict[str, Any]:
    """Read a DeepSpeed configuration.

    Args:
        name: a preset by XTuner's name, with or without `deepspeed_`, or a JSON file.

    Raises:
        ConfigError: not found, not JSON, ZeRO-3 on quantized weights, or DeepSpeed cannot run on the task's device.
    """
    import torch

    from tuning.modules.quantize import choose_device

    preset = CONFIGS / "deepspeed" / f"deepspeed_{name.removeprefix('deepspeed_')}.json"
    path = preset if preset.exists() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in preset.parent.glob("*.json")))
        raise ConfigError(f"--deepspeed {name}: neither a file nor one of {names}; use one of these.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        stage = config.get("zero_optimization", {}).get("stage", 0)
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"--deepspeed {path}: not a DeepSpeed configuration in JSON ({error}); fix it.") from error
    if stage == 3 and (bits := task.quant.bits) != 16:
        raise ConfigError(
            f"--deepspeed {name}: ZeRO-3 cannot shard {bits}-bit weights; use deepspeed_zero2, or set quant.bits=16."
        )
    on_cpu = choose_device(task.run.device).type == "cpu"
    if on_cpu and torch.cuda.is_available():
        raise ConfigError(
            f"--deepspeed {name}: DeepSpeed uses the GPUs of this machine; omit it, or omit run.device=cpu."
        )
    if on_cpu and shutil.which(os.environ.get("CXX", "c++")) is None:
        raise ConfigError(
            f"--deepspeed {name}: DeepSpeed compiles code on a CPU and finds no C++ compiler; install one, or omit it."
        )
    return config
