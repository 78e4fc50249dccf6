"""`twinlens convert pth_to_hf` and `twinlens convert xtuner`: from XTuner's checkpoints, and to its folders."""

import shlex
from pathlib import Path

import typer

from llm.checkpoints.embedded import EMBEDDED as EMBEDDED
from llm.checkpoints.embedded import embedded_folder
from tuning.errors import ConfigError
from tuning.run_dir import open_run
from twinlens.cli.configs import OVERRIDES
from twinlens.cli.convert import SHARD
from twinlens.cli.output import JSON, command, print_differences, print_result
from twinlens.task_files import open_task, read_task
from twinlens.tasks import AnyTask
from vlm.settings import ImageTask

FP32 = typer.Option(
    False, "--fp32", help="Keep in fp32 what is halved without: a whole language model, in XTuner's layout its adapter."
)
SAFE = typer.Option(False, "--safe-serialization", help="Safetensors in XTuner's layout too, in place of pickles.")


def pth_to_hf(
    config: Path = typer.Argument(..., help="The task or config that it was trained with."),
    checkpoint: Path = typer.Argument(..., metavar="PTH", help="XTuner's iter_N.pth: a file, or DeepSpeed's folder."),
    destination: Path = typer.Argument(..., metavar="DEST", help="A new folder."),
    overrides: list[str] = OVERRIDES,
    layout: str | None = typer.Option(
        None, help="peft, which twinlens and PEFT read (of a LLaVA: the folder of an image run), or xtuner; else peft."
    ),
    save_format: str | None = typer.Option(None, help="XTuner's name for --layout: xtuner."),
    fp32: bool = FP32,
    safe_serialization: bool = SAFE,
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Turn what XTuner trained into an adapter or a model, or of a LLaVA into the folder of an image run."""
    if save_format not in (None, "xtuner"):
        raise ConfigError(
            f"--save-format {save_format}: convert without it, then `twinlens convert llava {destination} LLAVA`."
        )
    chosen = layout or save_format or "peft"
    if chosen not in ("peft", "xtuner"):
        raise ConfigError(f"--layout {chosen}: no such layout; take peft or xtuner.")
    from llm.export.saving import check_shard_size
    from twinlens.xtuner.checkpoints import convert_checkpoint, read_checkpoint
    from twinlens.xtuner.export import write_xtuner

    check_shard_size(max_shard_size)
    opened = open_task(config, overrides or ())
    print_differences(opened)
    task = opened.task
    if chosen == "xtuner":
        _refuse_whole(task, destination)
    parts = read_checkpoint(checkpoint, task)
    if chosen == "xtuner":
        write_xtuner(parts, task, destination, fp32, safe_serialization)
        following = _chat_of_xtuner(task, destination)
    else:
        convert_checkpoint(parts, task, destination, max_shard_size, fp32)
        named = (
            None if isinstance(task, ImageTask) or task.full_finetuning else task.template
        )  # run and model carry theirs
        following = command("chat", destination, template=named)
    held = {
        "adapter": parts.language,
        "model": parts.full_language,
        "tower adapter": parts.tower,
        "tower": parts.full_tower,
        "projector": parts.projector,
    }
    written = [name for name, state in held.items() if state]
    wrote = "hf" if task.full_finetuning else chosen
    lines = [f"layout: {wrote}", f"{', '.join(written)}: {destination}"]
    print_result({"folder": str(destination), "layout": wrote, "parts": written}, lines, following, as_json)


def to_xtuner(
    run: Path = typer.Argument(..., metavar="RUN", help="A run folder."),
    destination: Path = typer.Argument(..., metavar="DEST", help="A new folder."),
    fp32: bool = FP32,
    safe_serialization: bool = SAFE,
    as_json: bool = JSON,
) -> None:
    """Write what a run learned as XTuner's chat reads it; on an InternLM2 base, for that one's own fused layers."""
    opened = open_run(run)
    task, _ = read_task(opened.task)
    from twinlens.xtuner.export import read_run, write_xtuner
    from vlm.finetuned import finetuned_task

    write_xtuner(read_run(opened, task), task, destination, fp32, safe_serialization)
    if isinstance(task, ImageTask):
        task = finetuned_task(opened, task)
    print_result({"folder": str(destination)}, [f"folder: {destination}"], _chat_of_xtuner(task, destination), as_json)


def _refuse_whole(task: AnyTask, destination: Path) -> None:
    """XTuner's layout has nothing of its own for whole models."""
    image = isinstance(task, ImageTask)
    if image and (task.full_finetuning or task.whole_tower):
        raise ConfigError(
            "--layout xtuner: holds adapters and a projector, and this config trains whole models; convert without it "
            f"to a run, then `twinlens convert xtuner RUN {destination}`."
        )
    if task.full_finetuning:
        raise ConfigError("--layout xtuner: a whole model is a plain model folder there too; leave --layout out.")


def _chat_of_xtuner(task: AnyTask, folder: Path) -> str:
    named = ["--prompt-template", task.template] if task.template else []
    base = str(embedded_folder()) if task.model == EMBEDDED else task.model  # a name of ours alone
    if isinstance(task, ImageTask):
        sees = ["--visual-encoder", task.tower, "--llava", str(folder), "--image", "FILE"]
        return shlex.join(["xtuner", "chat", base, *sees, *named])
    return shlex.join(["xtuner", "chat", base, "--adapter", str(folder), *named])
