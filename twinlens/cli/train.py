"""`twinlens plan`, `train` and `compare`: forecast a run, fine-tune, compare answers before and after."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median_high
from typing import TYPE_CHECKING, Literal

import typer

from tuning.errors import ConfigError
from tuning.run_dir import open_run
from twinlens.cli.configs import FILE, OVERRIDES, open_and_report
from twinlens.cli.output import JSON, WORK_DIR, command, print_result
from twinlens.task_files import OpenedTask, read_task
from twinlens.tasks import AnyTask, recipe_of

if TYPE_CHECKING:
    from tuning.evaluation.compare import Comparison
    from twinlens.start import RunResult


def plan(file: Path = FILE, overrides: list[str] = OVERRIDES, as_json: bool = JSON) -> None:
    """Forecast a training run without loading the model weights.

    Shows the number of rows, sequences (packs of rows, or padded rows), micro-batches, optimizer steps, tokens and
    trainable parameters, and the compute in TFLOP.
    """
    _print_forecast(open_and_report(file, overrides), command("train", file, *overrides), as_json)


def train(
    file: Path | None = typer.Argument(None, help=f"{FILE.help} Required, except with --resume."),
    overrides: list[str] = OVERRIDES,
    work_dir: Path = typer.Option(
        WORK_DIR,
        help="Folder of all runs: the run folder is created in it as TASK/TIME, where TASK is the name of FILE "
        "without suffix. No effect with --resume.",
    ),
    deepspeed: str | None = typer.Option(
        None,
        help="Train with DeepSpeed: a JSON configuration file, or one of the presets zero1, zero2, zero2_offload, "
        "zero3 and zero3_offload, with or without the prefix deepspeed_. By default without DeepSpeed.",
    ),
    engine: Literal["twinlens", "xtuner"] = typer.Option(
        "twinlens",
        help="twinlens: its own training loop. xtuner: XTuner 0.2.0, which `twinlens xtuner install` installs; one "
        "device only, without --deepspeed and --resume.",
    ),
    resume: Path | None = typer.Option(
        None,
        help="Run folder of a stopped run, to continue it from its last checkpoint (from the start if it has none). "
        "The settings are those in its task.yaml, so give no FILE and no overrides; --deepspeed is not stored, so give "
        "it again.",
    ),
    dry_run: bool = typer.Option(
        False, help="Check everything and show the output of `plan`, but do not train; not with --resume."
    ),
    as_json: bool = JSON,
) -> None:
    """Fine-tune a model with the settings of a task file, and write the results into a new run folder."""
    if (file is None) == (resume is None):
        raise ConfigError("train: give a task file or --resume RUN, one of the two.")
    if resume is not None and dry_run:
        raise ConfigError(
            f"train: --resume has no --dry-run; `{command('plan', resume / 'task.yaml')}` shows the plan."
        )
    if engine == "xtuner" and (deepspeed or resume):
        raise ConfigError("train: --engine xtuner supports neither --deepspeed nor --resume; omit them.")
    from twinlens import start

    if resume is not None:
        task, _ = read_task(open_run(resume).task)
        config = start.deepspeed_config(deepspeed, task) if deepspeed else None
        return _print_run(start.resume(resume, config), task, as_json)
    assert file is not None
    from twinlens.checks import check_data, check_models

    opened = open_and_report(file, overrides)
    task, environment = opened.task, None
    check_models(task, work_dir)
    if dry_run:  # otherwise training reads the data
        check_data(task)
    config = start.deepspeed_config(deepspeed, task) if deepspeed else None
    if engine == "xtuner":
        from twinlens.xtuner.engine.environment import find_environment
        from twinlens.xtuner.engine.train import check_task as check_for_xtuner

        environment = find_environment()
        check_for_xtuner(task)
    if dry_run:
        options = {"work_dir": None if work_dir == WORK_DIR else work_dir, "deepspeed": deepspeed}
        following = command("train", file, *overrides, **options, engine=engine if environment else None)
        return _print_forecast(opened, following, as_json)
    return _print_run(start.start(task, file.stem, work_dir, config, environment), task, as_json, opened.differs)


def compare(
    run: Path = typer.Argument(..., help="Folder of a finished run."),
    probes: list[Path] = typer.Option(
        [],
        help="YAML file of test questions (probes); may be given several times. By default the files in "
        "evaluation.probes of the run's task.",
    ),
    as_json: bool = JSON,
) -> None:
    """Compare the answers of a run's model before and after training to the same test questions (probes).

    The command loads the model in both states and asks both. It writes the report RUN/comparison.html, also as
    .json and .md.
    """
    run_dir = open_run(run)
    task, _ = read_task(run_dir.task)
    if not probes and not task.evaluation.probes:
        raise ConfigError(
            f"{run_dir.task}: evaluation.probes is empty; give --probes FILE, such as probes/unrelated.zh.yaml."
        )
    show_comparison(run_dir.path, recipe_of(task).compare(run_dir, task, probes), as_json)


def show_comparison(run: Path, comparison: "Comparison", as_json: bool) -> None:
    """Print the table of scores, some answers before and after, and the path of the report."""
    from rich.console import Console

    from tuning.evaluation.compare import comparison_to_dict, sample_table, score_table

    if not as_json:
        for table in filter(None, (score_table(comparison), sample_table(comparison))):
            Console().print(table)
    report = run / "comparison.html"
    result = comparison_to_dict(comparison) | {"report": str(report)}
    print_result(result, [f"report: {report}"], command("chat", run), as_json)


def _print_run(result: "RunResult", task: AnyTask, as_json: bool, differs: Sequence[str] = ()) -> None:
    """Print the last step of a run and the paths of its results."""
    run, reports = result.run.path, result.reports
    steps, loss = (reports[-1].step, reports[-1].loss) if reports else (0, None)
    outputs = {name: str(run / name) for name in ("adapter", "model") if (run / name).exists()}
    lines = [f"run: {run}", *(f"{name}: {path}" for name, path in outputs.items())]
    if reports:
        speed = median_high(report.tokens_per_second for report in reports)
        lines.insert(0, f"{steps} steps, loss {loss:.4f}, {speed:,.0f} tokens/s")
    following = command("compare" if task.evaluation.probes else "chat", run)
    print_result({"run": str(run), **outputs, "steps": steps, "loss": loss}, lines, following, as_json, differs)


def _print_forecast(opened: OpenedTask, following: str, as_json: bool) -> None:
    from llm.forecast import as_dict

    task = opened.task
    cost = recipe_of(task).forecast(task)
    rehearsal = "without rehearsal"
    if cost.rehearsal:
        rehearsal = (
            f"and {task.rehearsal.ratio:g} rehearsal rows per row ({cost.rehearsal} distinct; prompts are assumed to "
            "have the mean length of the data)"
        )
    lines = [
        f"rows:          {cost.rows:,} per epoch, {rehearsal}",
        f"sequences:     {cost.sequences:,} {'packs' if task.data.pack else 'padded rows'} in the run",
        f"micro-batches: {cost.micro_batches:,}, which XTuner counts as iterations",
        f"steps:         {cost.steps:,} optimizer steps",
        f"tokens:        {cost.tokens:,}, of them {cost.labels:,} with loss",
        f"parameters:    {cost.parameters:,} in the language model, {cost.trainable:,} trainable",
        f"compute:       {cost.flops / 1e12:,.1f} TFLOP",
    ]
    print_result(as_dict(cost), lines, following, as_json, opened.differs)
