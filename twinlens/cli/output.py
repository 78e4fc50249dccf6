"""Output of every verb: lines for people or one JSON object, and the next command."""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tuning.data.card import DatasetCard
    from twinlens.task_files import OpenedTask

WORK_DIR = Path("work_dirs")
JSON = typer.Option(False, "--json", help="Print one JSON object on stdout; everything else goes to stderr.")


def print_result(result: dict[str, Any], lines: list[str], following: str | None, as_json: bool) -> None:
    """Print a verb's result: `lines` for people and the command that comes next, or `result` as JSON."""
    if as_json:
        lines = [json.dumps(result | ({"next": following} if following else {}), ensure_ascii=False, default=str)]
    elif following:
        lines = [*lines, f"next: {following}"]
    for line in lines:
        print(line)


def print_dataset(
    out: Path, card: "DatasetCard", lines: list[str], following: str, as_json: bool, **extra: object
) -> None:
    """Print the result of a verb that wrote a dataset: its path, its card and `extra` values."""
    from tuning.data.card import card_path, card_to_dict

    print_result({"out": out, "card": card_path(out)} | extra | card_to_dict(card), lines, following, as_json)


def print_differences(opened: "OpenedTask") -> None:
    """Print on stderr what does not carry over from an XTuner config, and old and new value of each override."""
    for line in (*(f"differs: {line}" for line in opened.differs), *(f"override: {line}" for line in opened.changes)):
        print(line, file=sys.stderr)


def command(*words: object, **options: object) -> str:
    """A quoted twinlens command line; options that are None are left out."""
    flags = [
        word for name, value in options.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]
    return shlex.join(map(str, ("twinlens", *words, *flags)))


def with_differences(result: dict[str, Any], differs: Sequence[str]) -> dict[str, Any]:
    """A verb's result with what does not carry over from an XTuner config."""
    return result | ({"differs": list(differs)} if differs else {})
