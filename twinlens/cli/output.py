"""Output of every subcommand: text or one JSON object, and a suggested next command."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tuning.data.card import DatasetCard

WORK_DIR = Path("work_dirs")
JSON = typer.Option(False, "--json", help="Print one JSON object on stdout; everything else goes to stderr.")


def print_result(
    result: dict[str, Any], lines: list[str], following: str | None, as_json: bool, differs: Sequence[str] = ()
) -> None:
    """Print a verb's result: `lines` for people, or `result` as JSON.

    Args:
        following: the next command, printed last.
        differs: settings of an XTuner config that do not carry over, for the JSON.
    """
    if as_json:
        extra = {"differs": list(differs), "next": following}
        result = result | {key: value for key, value in extra.items() if value}
        lines = [json.dumps(result, ensure_ascii=False, default=str)]
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


def command(*words: object, **options: object) -> str:
    """A quoted twinlens command line; options that are None are omitted."""
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not None}
    flags = [word for option in given.items() for word in option]
    return shlex.join(map(str, ("twinlens", *words, *flags)))
