"""`twinlens convert`: merge adapters, export LLaVA, convert InternLM and XTuner checkpoints."""

import shlex
from pathlib import Path
from typing import Literal

import typer

from llm.checkpoints.embedded import EMBEDDED, embedded_folder
from tuning.errors import ConfigError
from tuning.run_dir import RunDir, open_run
from tuning.settings import Quant
from twinlens.cli.configs import OVERRIDES, open_and_report
from twinlens.cli.output import JSON, command, print_result
from twinlens.task_files import read_task
from twinlens.tasks import AnyTask
from vlm.settings import ImageTask

DEST = typer.Argument(..., metavar="DEST", help="A new folder.")
SHARD = typer.Option("2GB", help="Maximum size of a weights file, such as 500MB or 2GB.")
FP32 = typer.Option(False, "--fp32", help="Keep fp32 in a full language model or in XTuner's layout, not 16 bits.")
SAFE = typer.Option(False, "--safe-serialization", help="Write safetensors instead of pickles in XTuner's layout too.")


def merge(
    paths: list[str] = typer.Argument(
        ..., metavar="RUN DEST | BASE ADAPTER DEST", help="A run, or a base model and an adapter (also of XTuner)."
    ),
    layout: Literal["hf", "internlm2"] = typer.Option(
        "hf", help="internlm2 is the layout of an InternLM2 base, which other tools load with that model's code."
    ),
    template: str | None = typer.Option(
        None, "--template", "--prompt-template", help="Chat template to save; by default that of the run or base."
    ),
    max_shard_size: str = SHARD,
    device: Literal["cpu", "cuda", "auto"] = typer.Option("cpu", help="Device that computes the merge."),
    is_clip: bool = typer.Option(False, "--is-clip", help="BASE is a CLIP or SigLIP tower, ADAPTER is its adapter."),
    safe_serialization: bool = typer.Option(
        True, "--safe-serialization", help="For XTuner's command lines; weights are always written as safetensors."
    ),
    as_json: bool = JSON,
) -> None:
    """Merge an adapter into its 16-bit base, verify it, and show the effect of rounding."""
    if is_clip:
        if layout != "hf" or template:
            raise ConfigError("convert merge --is-clip: a tower has neither --layout nor --template; omit them.")
        return _merge_tower(paths, max_shard_size, as_json)
    base, adapter, destination, quant, run_template = _merge_inputs(paths)
    from llm.export.merge import merge as merge_model

    report = merge_model(base, adapter, destination, max_shard_size, quant, template or run_template, layout, device)
    lines = [
        f"merged against base + adapter (fp32):   {report.merged}",
        f"rounding to {report.dtype} changed:       {report.rounded}",
    ]
    if report.quantized is not None and quant is not None:
        lines.append(f"difference to the {quant.bits}-bit base:         {report.quantized}")
    if layout == "internlm2":
        lines.append("layout: internlm2; other tools also need InternLM2's .py files in this folder")
    result = {
        "model": str(destination),
        "layout": layout,
        "dtype": report.dtype,
        "merged_difference": report.merged.difference,
        "rounding_difference": report.rounded.difference,
        "rounding_same_token": report.rounded.same_token,
        "quantised_difference": report.quantized.difference if report.quantized else None,
    }
    return print_result(result, [*lines, f"model: {destination}"], command("chat", destination), as_json)


def llava(
    run: Path = typer.Argument(..., metavar="RUN", help="The folder of an image run."),
    destination: Path = DEST,
    layout: Literal["hf", "official", "parts"] | None = typer.Option(
        None, help="By default hf if transformers' LLaVA supports the tower, else parts."
    ),
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Merge an image run in 16 bits, verify it, and write a LLaVA checkpoint or separate parts."""
    run_dir = open_run(run)
    task, _ = read_task(run_dir.task)
    if not isinstance(task, ImageTask):
        raise ConfigError(f"{run}: is a text run; use `{command('convert', 'merge', run, destination)}`.")
    from vlm.export.llava import export

    report = export(run_dir, task, destination, layout, max_shard_size)
    reason = ""
    if layout is None and report.layout == "parts":
        reason = f", because transformers' LLaVA has no class for the tower {task.tower}"
    lines = [
        f"merged against the run (fp32):          {report.exported}",
        f"rounding to {report.dtype} changed:       {report.rounded}",
        f"layout: {report.layout}{reason}",
        f"model: {destination}",
    ]
    result = {
        "model": str(destination),
        "layout": report.layout,
        "dtype": report.dtype,
        "exported_difference": report.exported.difference,
        "rounding_difference": report.rounded.difference,
        "rounding_same_token": report.rounded.same_token,
    }
    serve, chat = shlex.join(["transformers", "serve", str(destination)]), command("chat", destination / "language")
    print_result(result, lines, {"hf": serve, "parts": chat}.get(report.layout), as_json)


def internlm(
    source: str = typer.Argument(..., metavar="SRC", help="A checkpoint of InternLM 1, 2 or 2.5."),
    destination: Path = DEST,
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Convert an InternLM checkpoint to Llama's layout, which other tools load without remote code."""
    from llm.export.internlm_layout import convert_internlm

    weights = convert_internlm(source, destination, max_shard_size)
    lines = [f"{weights} weights, values unchanged; every name and shape matches the config", f"model: {destination}"]
    print_result({"model": str(destination), "weights": weights}, lines, command("chat", destination), as_json)


def pth_to_hf(
    config: Path = typer.Argument(..., help="The task file or config of the training."),
    checkpoint: Path = typer.Argument(..., metavar="PTH", help="XTuner's iter_N.pth: a file, or DeepSpeed's folder."),
    destination: Path = DEST,
    overrides: list[str] = OVERRIDES,
    layout: Literal["peft", "xtuner"] | None = typer.Option(
        None, help="peft (the default) for twinlens and PEFT, or for a LLaVA an image run; xtuner for XTuner."
    ),
    save_format: str | None = typer.Option(None, help="XTuner's name for --layout: xtuner."),
    fp32: bool = FP32,
    safe_serialization: bool = SAFE,
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Convert an XTuner checkpoint to an adapter or a model, or for a LLaVA to the folder of an image run."""
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
    states = (parts.language, parts.full_language, parts.tower, parts.full_tower, parts.projector)
    labels = ("adapter", "model", "tower adapter", "tower", "projector")
    names = [label for label, state in zip(labels, states, strict=True) if state]
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


def _merge_tower(paths: list[str], max_shard_size: str, as_json: bool) -> None:
    if len(paths) != 3:
        raise ConfigError("convert merge --is-clip: give TOWER ADAPTER DEST.")
    from vlm.export.merge_tower import merge_tower

    destination = Path(paths[2])
    difference = merge_tower(paths[0], Path(paths[1]), destination, max_shard_size)
    merged = f"merged against tower + adapter (fp32):   {difference:.1e} of the largest feature"
    lines = [merged, f"tower: {destination}"]
    result = {"tower": str(destination), "merged_difference": difference}
    print_result(result, lines, command("check", "my.yaml", f"tower={destination}"), as_json)


def _merge_inputs(paths: list[str]) -> tuple[str, Path, Path, Quant | None, str | None]:
    """Base, adapter and destination; for a run also its quantization and the name of its chat template."""
    if len(paths) == 3:
        return paths[0], Path(paths[1]), Path(paths[2]), None, None
    if len(paths) != 2:
        raise ConfigError("convert merge: wrong number of paths; give RUN DEST, or BASE ADAPTER DEST.")
    run = RunDir(Path(paths[0]))
    if not run.task.exists():
        raise ConfigError(f"{run.path}: not a run folder (task.yaml is missing); give RUN DEST, or BASE ADAPTER DEST.")
    task, _ = read_task(run.task)
    if isinstance(task, ImageTask):
        raise ConfigError(f"{run.path}: is an image run; use `{command('convert', 'llava', *paths)}`.")
    if task.full_finetuning:
        raise ConfigError(f"{run.path}: is a run of full fine-tuning, which needs no merge; use {run.model}.")
    return task.versioned_model, run.adapter, Path(paths[1]), task.quant, task.template


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
