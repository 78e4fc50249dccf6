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

DEST = typer.Argument(..., metavar="DEST", help="The folder to write; it must be new or empty.")
SHARD = typer.Option("2GB", help="Maximum size of one weights file, such as 500MB or 2GB.")


def merge(
    paths: list[str] = typer.Argument(
        ...,
        metavar="RUN DEST | BASE ADAPTER DEST",
        help="RUN: run folder of a text task. BASE: model folder, hub name (owner/model) or `embedded`. ADAPTER: LoRA "
        "adapter folder of PEFT or XTuner. DEST: the folder to write, new or empty.",
    ),
    layout: Literal["hf", "internlm2"] = typer.Option(
        "hf",
        help="hf: Hugging Face layout, InternLM as Llama; transformers loads it without remote code. internlm2: the "
        "original layout, only for an InternLM2 base; to load it with other tools, copy InternLM2's .py files to DEST.",
    ),
    template: str | None = typer.Option(
        None,
        "--template",
        "--prompt-template",
        help="Name of one of XTuner's chat templates to save with the model; an unknown name prints all names. By "
        "default that of the run's task, else that of the base model.",
    ),
    max_shard_size: str = SHARD,
    device: Literal["cpu", "cuda", "auto"] = typer.Option(
        "cpu", help="Device that computes the merge; auto is a GPU if there is one. No effect with --is-clip (CPU)."
    ),
    is_clip: bool = typer.Option(
        False,
        "--is-clip",
        help="BASE is a CLIP or SigLIP vision tower, ADAPTER its LoRA adapter: RUN/adapter/tower, or XTuner's "
        "visual_encoder_adapter. Not with --layout internlm2 or --template.",
    ),
    safe_serialization: bool = typer.Option(
        True,
        "--safe-serialization",
        help="No effect; accepted because XTuner has this option. Weights are always written as safetensors.",
    ),
    as_json: bool = JSON,
) -> None:
    """Merge a LoRA adapter into its base model, and write a model in 16 bits that needs no adapter.

    The base model is loaded without quantization, also if the adapter was trained on a 4-bit base. Verification: in
    fp32, base with adapter and merged model must give the same logits, else nothing is written. The output shows
    how much rounding to 16 bits changes the logits. With --is-clip a vision tower is merged, and written in fp32.
    """
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
    run: Path = typer.Argument(..., metavar="RUN", help="Run folder of a finished image task."),
    destination: Path = DEST,
    layout: Literal["hf", "official", "parts"] | None = typer.Option(
        None,
        help="hf: for transformers' LLaVA (CLIP and SigLIP towers). official: for LLaVA's own code (CLIP towers, "
        "Llama models). parts: language model and projector separately, and the tower if it was trained. By default "
        "hf if the tower allows it, else parts.",
    ),
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Merge the adapters of an image task's run, and write a LLaVA checkpoint or its separate parts, in 16 bits.

    Verification: in fp32, the run and the merged model must give the same logits, else nothing is written. The
    output shows how much rounding to 16 bits changes the logits.
    """
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
    source: str = typer.Argument(
        ..., metavar="SRC", help="Model folder or hub name (owner/model) of an InternLM 1, 2 or 2.5."
    ),
    destination: Path = DEST,
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Convert an InternLM checkpoint to Llama's layout, which other tools load without remote code.

    The values of the weights do not change.
    """
    from llm.export.internlm_layout import convert_internlm

    weights = convert_internlm(source, destination, max_shard_size)
    lines = [f"{weights} weights, values unchanged; every name and shape matches the config", f"model: {destination}"]
    print_result({"model": str(destination), "weights": weights}, lines, command("chat", destination), as_json)


def pth_to_hf(
    config: Path = typer.Argument(
        ...,
        help="Settings that the checkpoint was trained with: a YAML task file, the .py file of an XTuner config, or a "
        "name that list-cfg prints.",
    ),
    checkpoint: Path = typer.Argument(
        ..., metavar="PTH", help="XTuner's checkpoint iter_N.pth: a file, or the folder that DeepSpeed wrote."
    ),
    destination: Path = DEST,
    overrides: list[str] = OVERRIDES,
    layout: Literal["peft", "xtuner"] | None = typer.Option(
        None,
        help="peft (default): the files described above. xtuner: the files that XTuner's own converter writes, for "
        "`xtuner chat`; not after full fine-tuning.",
    ),
    save_format: str | None = typer.Option(
        None,
        help="XTuner's name of --layout. The only accepted value is xtuner; no effect if --layout is given.",
    ),
    fp32: bool = typer.Option(
        False,
        "--fp32",
        help="Write fp32 instead of 16 bits: a fully fine-tuned language model (default: dtype of its base), or with "
        "--layout xtuner the adapter of the language model (default: fp16). All other weights are always fp32.",
    ),
    safe_serialization: bool = typer.Option(
        False,
        "--safe-serialization",
        help="With --layout xtuner: write .safetensors files instead of pickle files (.bin). No effect with --layout "
        "peft, which always writes .safetensors files.",
    ),
    max_shard_size: str = SHARD,
    as_json: bool = JSON,
) -> None:
    """Convert an XTuner checkpoint (.pth) to files that twinlens and other tools read.

    LoRA training of a text model gives a PEFT adapter, full fine-tuning of a text model gives a model folder. A
    LLaVA checkpoint gives the run folder of an image task, for `chat` and `convert llava`.
    """
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
    run: Path = typer.Argument(
        ...,
        metavar="RUN",
        help="Run folder of a finished text task with an adapter, or of an image task with a CLIP tower.",
    ),
    destination: Path = DEST,
    fp32: bool = typer.Option(
        False,
        "--fp32",
        help="Write the adapter of the language model in fp32 instead of fp16. All other weights are always fp32.",
    ),
    safe_serialization: bool = typer.Option(
        False, "--safe-serialization", help="Write .safetensors files instead of pickle files (.bin)."
    ),
    as_json: bool = JSON,
) -> None:
    """Convert the result of a run to the files that `xtuner chat` reads.

    The files are the adapters, and for an image task also the projector.

    XTuner's InternLM2 computes query, key and value in one fused layer, wqkv. For an InternLM2 base, the adapters
    of these three layers are therefore written as one adapter of wqkv.
    """
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
