"""What every verb prints: a result for people, or one JSON object, and the next verb."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import typer

JSON = typer.Option(False, "--json", help="Print one JSON object on stdout; everything else goes to stderr.")


def finish(result: dict[str, Any], lines: list[str], following: str | None, as_json: bool) -> None:
    """Print a verb's result: `lines` for people and the verb that comes next, or `result` as JSON."""
    if as_json:
        print(json.dumps(result | ({"next": following} if following else {}), ensure_ascii=False, default=str))
        return
    for line in lines:
        print(line)
    if following:
        print(f"next: {following}")


def tell_changes(changes: Sequence[str]) -> None:
    """Each override of a setting, old and new, on stderr."""
    for change in changes:
        print(f"override: {change}", file=sys.stderr)
