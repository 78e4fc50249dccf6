"""Check that `tuning`, `llm`, `vlm` and `data_gen` are this project's packages."""

import sys
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("tuning", "llm", "vlm", "data_gen")
ROOT = Path(__file__).resolve().parent.parent


def check_packages() -> None:
    """Exit 2 with one sentence if a package of another project has the name of one of ours."""
    for package in PACKAGES:
        spec = find_spec(package)
        origin = spec.origin if spec else None
        if origin is None or Path(origin).resolve().parent != ROOT / package:
            sys.stderr.write(
                f"error: the package {package!r} comes from {origin or 'nowhere'}, not from twinlens; "
                "install twinlens in its own virtual environment.\n"
            )
            raise SystemExit(2)
