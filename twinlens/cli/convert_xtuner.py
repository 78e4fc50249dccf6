"""`twinlens convert pth_to_hf` and `convert xtuner`: convert from XTuner's checkpoints and to its folders."""

import shlex
from pathlib import Path
from typing import Literal

import typer

from llm.checkpoints.embedded import EMBEDDED, embedded_folder
from tuning.errors import ConfigError
from tuning.run_dir import open_run
from twinlens.cli.configs import OVERRIDES, open_and_report
from twinlens.cli.convert import DEST, SHARD
from twinlens.cli.output import JSON, command, print_result
from twinlens.task_files import read_task
from twinlens.tasks import AnyTask
from vlm.settings import ImageTask

FP32 = typer.Option(
    False,
    "--fp32",
    help="Keep fp32, for a full language model or an adapter in XTuner's layout; the default is 16 bits.",
)
SAFE = typer.Option(False, "--safe-serialization", help="Write safetensors instead of pickles in XTuner's layout too.")


def pth_to_hf(
    config: Path = typer.Argument(..., help="The task file or config of the training."),
    checkpoint: Path = typer.Argument(..., metavar="PTH", help="XTuner's iter_N.pth: a file, or DeepSpeed's folder."),
    destination: Path = DEST,
    overrides: list[str] = OVERRIDES,
    layout: Literal["peft", "xtuner"] | None = typer.Option(
        None, help="peft (the default) for twinlens and PEFT, of a LLaVA the folder of an image run; xtuner for XTuner."
    ),
    save_format: str | None = typer.Option(None, help="XTuner's name for --layout: xtuner."),
    fp32: bool = FP32,
    safe_serialization: bool = SAFE,
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Convert an XTuner checkpoint to an adapter or a model, or of a LLaVA to the folder of an image run."""
    if save_format not in (None, "xtuner"):
        raise ConfigError(
            f"--save-format {save_format}: convert without it, then `twinlens convert llava {destination} LLAVA`."
        )
    from llm.export.saving import check_shard_size
    from twinlens.xtuner.checkpoints import convert_checkpoint, read_checkpoint
    from twinlens.xtuner.export import write_xtuner

    check_shard_size(max_shard_size)
    task, written = open_and_report(config, overrides).task, layout or save_format or "peft"
    if written == "xtuner":
        _refuse_full_models(task, destination)
    parts = read_checkpoint(checkpoint, task)
    if written == "xtuner":
        write_xtuner(parts, task, destination, fp32, safe_serialization)
        following = _xtuner_chat(task, destination)
    else:
        convert_checkpoint(parts, task, destination, max_shard_size, fp32)
        # The folder of a run or a full model contains its chat template.
        template = None if isinstance(task, ImageTask) or task.full_finetuning else task.template
        following = command("chat", destination, template=template)
        written = "hf" if task.full_finetuning else written
    states = {
        "adapter": parts.language,
        "model": parts.full_language,
        "tower adapter": parts.tower,
        "tower": parts.full_tower,
        "projector": parts.projector,
    }
    names = [name for name, state in states.items() if state]
    lines = [f"layout: {written}", f"{', '.join(names)}: {destination}"]
    print_result({"folder": str(destination), "layout": written, "parts": names}, lines, following, as_json)


def to_xtuner(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder."),
    destination: Path = DEST,
    fp32: bool = FP32,
    safe_serialization: bool = SAFE,
    as_json: bool = JSON,
) -> None:
    """Convert a run for XTuner's chat; on an InternLM2 base its adapters become adapters of the fused layers."""
    run_dir = open_run(run)
    task, _ = read_task(run_dir.task)
    from twinlens.xtuner.export import read_run, write_xtuner
    from vlm.finetuned import finetuned_task

    write_xtuner(read_run(run_dir, task), task, destination, fp32, safe_serialization)
    if isinstance(task, ImageTask):
        task = finetuned_task(run_dir, task)
    print_result({"folder": str(destination)}, [f"folder: {destination}"], _xtuner_chat(task, destination), as_json)


def _refuse_full_models(task: AnyTask, destination: Path) -> None:
    """Refuse XTuner's layout for full models: it has no files for them."""
    if isinstance(task, ImageTask) and (task.full_finetuning or task.whole_tower):
        raise ConfigError(
            "--layout xtuner: this layout has only adapters and a projector, but this config trains full models; "
            f"convert without --layout to a run, then `twinlens convert xtuner RUN {destination}`."
        )
    if task.full_finetuning:
        raise ConfigError("--layout xtuner: XTuner also saves a full model as a model folder; omit --layout.")


def _xtuner_chat(task: AnyTask, folder: Path) -> str:
    """The `xtuner chat` command for a converted folder."""
    base = str(embedded_folder()) if task.model == EMBEDDED else task.model  # XTuner does not know the name `embedded`
    image = isinstance(task, ImageTask)
    files = ["--visual-encoder", task.tower, "--llava", folder, "--image", "FILE"] if image else ["--adapter", folder]
    template = ["--prompt-template", task.template] if task.template else []
    return shlex.join(map(str, ["xtuner", "chat", base, *files, *template]))
