"""`twinlens convert ...`: from what training leaves to what others load."""

import shlex
from pathlib import Path

import typer

from tuning.errors import ConfigError
from tuning.run_dir import RunDir, open_run
from tuning.settings import Quant
from twinlens.cli.output import JSON, command, print_result
from twinlens.task_files import read_task
from vlm.settings import ImageTask

SHARD = typer.Option("2GB", help="Largest weights file, such as 500MB or 2GB.")


def merge(
    paths: list[str] = typer.Argument(
        ..., metavar="RUN DEST | BASE ADAPTER DEST", help="A run, or a base and an adapter, XTuner's too."
    ),
    layout: str = typer.Option(
        "hf", help="hf, or internlm2: the layout of an InternLM2 base, which other tools load with that model's code."
    ),
    template: str | None = typer.Option(
        None,
        "--template",
        "--prompt-template",
        help="Name of a chat template to write; a run's or the base's otherwise.",
    ),
    max_shard_size: str = SHARD,
    device: str = typer.Option("cpu", help="Where the merging is computed: cpu, cuda or auto."),
    is_clip: bool = typer.Option(False, "--is-clip", help="BASE is a CLIP or SigLIP tower, and ADAPTER its own."),
    safe_serialization: bool = typer.Option(
        True, "--safe-serialization", help="As XTuner has it; weights are always written as safetensors."
    ),
    as_json: bool = JSON,
) -> None:
    """Fold an adapter into its 16-bit base, verify it, and say what rounding changed."""
    if layout not in ("hf", "internlm2"):
        raise ConfigError(f"--layout {layout}: no such layout; take hf or internlm2.")
    if device not in ("cpu", "cuda", "auto"):
        raise ConfigError(f"--device {device}: no such device; take cpu, cuda or auto.")
    if is_clip and (layout != "hf" or template):
        raise ConfigError("convert merge --is-clip: a tower has neither --layout nor --template; leave them out.")
    if is_clip:
        return _merge_tower(paths, max_shard_size, as_json)
    base, adapter, destination, quant, named = _what(paths)
    from llm.export.merge import merge as merge_model

    report = merge_model(base, adapter, destination, max_shard_size, quant, template or named, layout, device)
    lines = [
        f"merged against base + adapter (fp32):   {report.merged}",
        f"rounding to {report.dtype} changed:       {report.rounded}",
    ]
    if report.quantized is not None and quant is not None:
        lines.append(f"leaving the {quant.bits}-bit base changed:      {report.quantized}")
    if layout == "internlm2":
        lines.append("layout: internlm2; tools other than twinlens need InternLM2's own .py files beside the weights")
    lines.append(f"model: {destination}")
    result = {
        "model": str(destination),
        "layout": layout,
        "dtype": report.dtype,
        "merged_difference": report.merged.difference,
        "rounding_difference": report.rounded.difference,
        "rounding_same_token": report.rounded.same_token,
        "quantised_difference": report.quantized.difference if report.quantized else None,
    }
    return print_result(result, lines, command("chat", destination), as_json)


def llava(
    run: Path = typer.Argument(..., metavar="RUN", help="The folder of an image run."),
    destination: Path = typer.Argument(..., metavar="DEST", help="A new folder."),
    layout: str | None = typer.Option(
        None, help="hf, official or parts; hf where transformers' LLaVA knows the tower, else parts."
    ),
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Merge an image run in 16 bits, verify it, and write it as a LLaVA checkpoint or as parts."""
    opened = open_run(run)
    task, _ = read_task(opened.task)
    if not isinstance(task, ImageTask):
        raise ConfigError(f"{run}: is a run of the text path; use `{command('convert', 'merge', run, destination)}`.")
    if layout not in (None, "hf", "official", "parts"):
        raise ConfigError(f"--layout {layout}: no such layout; take hf, official or parts.")
    from vlm.export.llava import export

    report = export(opened, task, destination, layout, max_shard_size)
    lines = [
        f"merged against the run (fp32):          {report.exported}",
        f"rounding to {report.dtype} changed:       {report.rounded}",
    ]
    if layout is None and report.layout == "parts":
        lines.append(f"layout: parts, for transformers' LLaVA has no class for the tower {task.tower}")
    else:
        lines.append(f"layout: {report.layout}")
    lines.append(f"model: {destination}")
    result = {
        "model": str(destination),
        "layout": report.layout,
        "dtype": report.dtype,
        "exported_difference": report.exported.difference,
        "rounding_difference": report.rounded.difference,
        "rounding_same_token": report.rounded.same_token,
    }
    print_result(result, lines, _after(report.layout, destination), as_json)


def internlm(
    source: str = typer.Argument(..., metavar="SRC", help="A checkpoint of InternLM 1, 2 or 2.5."),
    destination: Path = typer.Argument(..., metavar="DEST", help="A new folder."),
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Write an InternLM checkpoint in Llama's layout, which other tools load without code of its own."""
    from llm.export.internlm_layout import convert_internlm

    written = convert_internlm(source, destination, max_shard_size)
    lines = [
        f"{written.weights} weights, as they were; every name and shape is what the config asks for",
        f"model: {destination}",
    ]
    print_result({"model": str(destination), "weights": written.weights}, lines, command("chat", destination), as_json)


def _merge_tower(paths: list[str], max_shard_size: str, as_json: bool) -> None:
    if len(paths) != 3:
        raise ConfigError("convert merge --is-clip: give TOWER ADAPTER DEST.")
    tower, adapter, destination = paths[0], Path(paths[1]), Path(paths[2])
    from vlm.export.merge_tower import merge_tower

    difference = merge_tower(tower, adapter, destination, max_shard_size)
    lines = [
        f"merged against tower + adapter (fp32):   {difference:.1e} of the largest feature",
        f"tower: {destination}",
    ]
    result = {"tower": str(destination), "merged_difference": difference}
    print_result(result, lines, command("check", "my.yaml", f"tower={destination}"), as_json)


def _after(layout: str, destination: Path) -> str | None:
    """What a written model is for."""
    return {
        "hf": shlex.join(["transformers", "serve", str(destination)]),
        "parts": command("chat", destination / "language"),
    }.get(layout)


def _what(paths: list[str]) -> tuple[str, Path, Path, Quant | None, str | None]:
    """Base, adapter, destination; and when a run tells, how the base was held in training and its template's name."""
    if len(paths) == 3:
        return paths[0], Path(paths[1]), Path(paths[2]), None, None
    if len(paths) != 2:
        raise ConfigError("convert merge: give RUN DEST, or BASE ADAPTER DEST.")
    run = RunDir(Path(paths[0]))
    if not run.task.exists():
        raise ConfigError(f"{run.path}: not a run folder (task.yaml is missing); give RUN DEST, or BASE ADAPTER DEST.")
    task, _ = read_task(run.task)
    if isinstance(task, ImageTask):
        raise ConfigError(f"{run.path}: is a run of the image path; use `{command('convert', 'llava', *paths)}`.")
    if task.full_finetuning:
        raise ConfigError(f"{run.path}: every weight was trained, so nothing is left to merge; use {run.model}.")
    return task.versioned_model, run.adapter, Path(paths[1]), task.quant, task.template
