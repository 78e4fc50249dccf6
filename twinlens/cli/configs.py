"""`twinlens list-cfg`, `copy-cfg`, `show-cfg` and `check`: list, copy, print and check task files."""

import sys
from pathlib import Path

import typer

from tuning.atomic import write_atomically
from tuning.errors import ConfigError
from twinlens.cli.output import JSON, WORK_DIR, command, print_result
from twinlens.task_files import OpenedTask, describe, explain, open_task, shipped_tasks
from twinlens.tasks import to_yaml

FILE = typer.Argument(..., help="A YAML task file, the .py file of an XTuner config, or a name that list-cfg prints.")
OVERRIDES = typer.Argument(
    [],
    metavar="[key=value ...]",
    help="Settings to override, with the names that show-cfg prints, also for an XTuner config; such as "
    "optim.learning_rate=1e-4. The value is YAML: [a, b] is a list, null or an empty value is null.",
)


def list_cfg(
    pattern: str = typer.Option(
        "", "-p", "--pattern", help="List only names that contain this text, case-insensitive; by default all."
    ),
    as_json: bool = JSON,
) -> None:
    """List the task files that ship with twinlens. A task file is a YAML file with the settings of a training run."""
    tasks = {name: file for name, file in shipped_tasks().items() if pattern.casefold() in name.casefold()}
    if not tasks:
        raise ConfigError(f"-p {pattern}: no shipped task has this text in its name; omit -p to see all.")
    width = max(map(len, tasks))
    lines = [f"{name:<{width}}  {describe(file)}" for name, file in tasks.items()]
    result = {"tasks": [{"name": name, "file": file, "about": describe(file)} for name, file in tasks.items()]}
    print_result(result, lines, f"twinlens copy-cfg {next(iter(tasks))} my.yaml", as_json)


def copy_cfg(
    name: str = typer.Argument(..., help="A name that list-cfg prints."),
    dest: Path = typer.Argument(
        ..., help="The file to write, or an existing folder, in which the file gets its shipped name."
    ),
    force: bool = typer.Option(False, "--force", help="Overwrite the file if it exists."),
    as_json: bool = JSON,
) -> None:
    """Copy a shipped task file and explain each setting in a comment above it.

    Settings that the shipped file omits are added as comments with their default values.
    """
    file = shipped_tasks().get(name.removesuffix(".yaml"))
    if file is None:
        raise ConfigError(f"{name}: no shipped task has this name; `twinlens list-cfg` lists the shipped tasks.")
    out = dest / file.name if dest.is_dir() else dest
    if out.exists() and not force:
        raise ConfigError(f"{out}: already exists; give another name, or --force to overwrite it.")
    write_atomically(out, explain(file))
    print_result({"out": out}, [f"{out}: edit it; each setting is explained above it"], command("check", out), as_json)


def show_cfg(file: Path = FILE, overrides: list[str] = OVERRIDES, as_json: bool = JSON) -> None:
    """Print all settings of a task as YAML, with the overrides applied and all defaults filled in."""
    opened = open_and_report(file, overrides)
    lines = to_yaml(opened.task).splitlines()
    # No next command: the output is itself a task file.
    print_result(opened.task.model_dump(mode="json"), lines, None, as_json, opened.differs)


def check(
    file: Path = FILE,
    overrides: list[str] = OVERRIDES,
    work_dir: Path = typer.Option(
        WORK_DIR, help="The --work-dir that train will use; only its write access and disk space are checked."
    ),
    deepspeed: str | None = typer.Option(
        None, help="The --deepspeed value that train will use, to check it too. No effect with --data-only."
    ),
    data_only: bool = typer.Option(
        False, "--data-only", help="Check only settings and data files, not models, device and disk; needs no torch."
    ),
    as_json: bool = JSON,
) -> None:
    """Check a task without loading the model weights: settings, data files, model files, device and disk.

    Model files: that they are complete or can be downloaded. Disk: write access to --work-dir, and enough free
    space for downloads and full fine-tuning.
    """
    from twinlens.checks import check_data, check_models
    from twinlens.start import deepspeed_config

    opened = open_and_report(file, overrides)
    if deepspeed and not data_only:
        deepspeed_config(deepspeed, opened.task)
    lines = check_data(opened.task) + ([] if data_only else check_models(opened.task, work_dir))
    options = {"work_dir": None if work_dir == WORK_DIR else work_dir, "deepspeed": deepspeed}
    following = command("check" if data_only else "train", file, *overrides, **options)
    result = {"ok": True, "found": lines}
    print_result(result, [*lines, "no problem found"], following, as_json, opened.differs)


def open_and_report(file: Path, overrides: list[str]) -> OpenedTask:
    """Open a task file; print on stderr what differs from an XTuner config, and each override's old and new value."""
    opened = open_task(file, overrides)
    for line in (*(f"differs: {line}" for line in opened.differs), *(f"override: {line}" for line in opened.changes)):
        print(line, file=sys.stderr)
    return opened
