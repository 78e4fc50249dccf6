"""Makes sure that `llm`, `vlm` and the other folder names are ours before anything imports them."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("tuning", "llm", "vlm", "data_gen")
ROOT = Path(__file__).resolve().parent.parent


def foreign_packages() -> dict[str, str]:
    """Rooms that another installed package answers for, with where it lies."""
    found: dict[str, str] = {}
    for room in PACKAGES:
        spec = find_spec(room)
        origin = spec.origin if spec else None
        if origin is None or Path(origin).resolve().parent != ROOT / room:
            found[room] = origin or "nowhere"
    return found


def check_packages() -> None:
    """Exit 2 with one sentence when some other package stands where a room of ours should."""
    for room, origin in foreign_packages().items():
        print(
            f"error: the package {room!r} comes from {origin}, not from twinlens; "
            "install twinlens in a virtual environment of its own.",
            file=sys.stderr,
        )
        raise SystemExit(2)
