"""What every verb prints: a result for people, or one JSON object, and the next verb."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from twinlens.task_files import OpenedTask

WORK_DIR = Path("work_dirs")
JSON = typer.Option(False, "--json", help="Print one JSON object on stdout; everything else goes to stderr.")


def print_result(result: dict[str, Any], lines: list[str], following: str | None, as_json: bool) -> None:
    """Print a verb's result: `lines` for people and the verb that comes next, or `result` as JSON."""
    if as_json:
        print(json.dumps(result | ({"next": following} if following else {}), ensure_ascii=False, default=str))
        return
    for line in lines:
        print(line)
    if following:
        print(f"next: {following}")


def print_differences(opened: "OpenedTask") -> None:
    """On stderr, a line for what of an XTuner config does not carry over, and for each override, old and new."""
    for line in opened.differs:
        print(f"differs: {line}", file=sys.stderr)
    for change in opened.changes:
        print(f"override: {change}", file=sys.stderr)


def command(*words: object, **options: object) -> str:
    """A line of twinlens's to be run as it stands; options that are None are left out."""
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", value)]
    return shlex.join(map(str, ("twinlens", *words, *given)))


def with_differences(result: dict[str, Any], differs: Sequence[str]) -> dict[str, Any]:
    """A verb's result, with what of an XTuner config does not carry over."""
    return result | ({"differs": list(differs)} if differs else {})
