"""`twinlens plan`, `twinlens train` and `twinlens compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import typer

from tuning.errors import ConfigError
from twinlens.cli.output import JSON, WORK_DIR, command, print_differences, print_result, with_differences


def plan(
    file: Path = typer.Argument(..., help="A task file or an XTuner config, yours, or a shipped task by its name."),
    overrides: list[str] = typer.Argument(None, metavar="[key=value ...]", help="Settings to change for this plan."),
    as_json: bool = JSON,
) -> None:
    """Say what a run would come to: packs, steps, tokens and cost, before any weights load."""
    from twinlens.task_files import open_task

    opened = open_task(file, overrides or ())
    print_differences(opened)
    _forecast(opened, command("train", file, *(overrides or ())), as_json)


def train(
    file: Path | None = typer.Argument(
        None, help="A task file or an XTuner config, yours, or a shipped task by its name."
    ),
    overrides: list[str] = typer.Argument(None, metavar="[key=value ...]", help="Settings to change for this run."),
    work_dir: Path = typer.Option(WORK_DIR, help="Where run folders are made."),
    deepspeed: str | None = typer.Option(None, help="A preset (deepspeed_zero1, zero2, ...) or a JSON file."),
    engine: Literal["twinlens", "xtuner"] = typer.Option("twinlens", help="Who trains: we, or XTuner itself."),
    resume: Path | None = typer.Option(None, help="A run folder to go on with, by its own task."),
    dry_run: bool = typer.Option(False, help="Check everything, then plan; train nothing."),
    as_json: bool = JSON,
) -> None:
    """Tune a model as a task file says."""
    if (file is None) == (resume is None):
        raise ConfigError("train: give a task file, or --resume RUN, one of the two.")
    if engine == "xtuner" and (deepspeed or resume):
        raise ConfigError("train: --engine xtuner goes with neither --deepspeed nor --resume; leave them out.")
    if resume is not None:
        _resume(resume, deepspeed, as_json)
        return
    assert file is not None
    from twinlens.checks import check_task
    from twinlens.start import deepspeed_config, start
    from twinlens.task_files import open_task

    opened = open_task(file, overrides or ())
    print_differences(opened)
    task = opened.task
    check_task(task, work_dir)
    config = deepspeed_config(deepspeed, task) if deepspeed else None
    xtuner = _xtuner(task) if engine == "xtuner" else None
    if dry_run:
        place, trainer = work_dir if work_dir != WORK_DIR else None, engine if xtuner else None
        options = {"work-dir": place, "deepspeed": deepspeed, "engine": trainer}
        _forecast(opened, command("train", file, *(overrides or ()), **options), as_json)
        return
    _done(start(task, file.stem, work_dir, config, xtuner), task, as_json, opened.differs)


def _xtuner(task: Any) -> Any:
    """Where XTuner is, once it is sure that it can train the task."""
    from twinlens.xtuner.engine.environment import find_environment
    from twinlens.xtuner.engine.train import check_task

    found = find_environment()
    check_task(task)
    return found


def _resume(run: Path, deepspeed: str | None, as_json: bool) -> None:
    from tuning.run_dir import open_run
    from twinlens.start import deepspeed_config, resume
    from twinlens.task_files import read_task

    task, _ = read_task(open_run(run).task)
    _done(resume(run, deepspeed_config(deepspeed, task) if deepspeed else None), task, as_json)


def _done(trained: Any, task: Any, as_json: bool, differs: Sequence[str] = ()) -> None:
    run = trained.run.path
    made = {name: str(place) for name in ("adapter", "model") if (place := run / name).exists()}
    lines = [f"run: {run}", *(f"{name}: {place}" for name, place in made.items())]
    if trained.loss is not None:
        lines.insert(0, f"{trained.steps} steps, loss {trained.loss:.4f}, {trained.tokens_per_second:,.0f} tokens/s")
    result = {"run": str(run), **made, "steps": trained.steps, "loss": trained.loss}
    following = command("compare" if task.evaluation.probes else "chat", run)
    print_result(with_differences(result, differs), lines, following, as_json)


def _forecast(opened: Any, following: str | None, as_json: bool) -> None:
    from llm.forecast import as_dict
    from twinlens.tasks import recipe_of

    task = opened.task
    cost = recipe_of(task).forecast(task)
    rehearsed = (
        f", and {task.rehearsal.ratio:g} of rehearsal for each ({cost.rehearsal} distinct, prompts counted at the "
        "data's mean length)"
    )
    lines = [
        f"rows:          {cost.rows:,} an epoch{rehearsed if cost.rehearsal else ', without rehearsal'}",
        f"sequences:     {cost.sequences:,} {'packs' if task.data.pack else 'padded rows'} in the whole run",
        f"micro-batches: {cost.micro_batches:,}, what XTuner counts as iterations",
        f"steps:         {cost.steps:,} of the optimizer",
        f"tokens:        {cost.tokens:,} in all, {cost.labels:,} learned from",
        f"parameters:    {cost.parameters:,} in the language model, {cost.trainable:,} trained",
        f"arithmetic:    {cost.flops / 1e12:,.1f} TFLOP",
    ]
    print_result(with_differences(as_dict(cost), opened.differs), lines, following, as_json)


def compare(
    run: Path = typer.Argument(..., help="A run folder."),
    probes: list[Path] = typer.Option(None, help="Probe files; the task's own when none is given."),
    as_json: bool = JSON,
) -> None:
    """Ask the same questions before and after, and write the report."""
    from tuning.run_dir import open_run
    from twinlens.task_files import read_task

    run_dir = open_run(run)
    task, _ = read_task(run_dir.task)
    if not probes and not task.evaluation.probes:
        raise ConfigError(
            f"{run_dir.task}: evaluation.probes is empty; give --probes FILE, such as probes/unrelated.zh.yaml."
        )
    show_comparison(run_dir.path, _judge(run_dir, task, probes or ()), as_json)


def _judge(run_dir: Any, task: Any, probes: Any) -> Any:
    from twinlens.tasks import recipe_of

    return recipe_of(task).compare(run_dir, task, probes)


def show_comparison(run: Path, comparison: Any, as_json: bool) -> None:
    """The table of scores, a few answers before and after, and where the report lies."""
    from rich.console import Console

    from tuning.evaluation.compare import comparison_to_dict, sample_table, score_table

    if not as_json:
        Console().print(score_table(comparison))
        if shown := sample_table(comparison):
            Console().print(shown)
    report = run / "comparison.html"
    result = comparison_to_dict(comparison) | {"report": str(report)}
    print_result(result, [f"report: {report}"], command("chat", run), as_json)
