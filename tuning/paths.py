"""Paths: shipped files under `configs/`, the cache folder, files inside installed Python packages."""

import importlib.metadata
import os
from pathlib import Path

from tuning.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def cache_folder() -> Path:
    """The folder for results that are slow to compute again: `$TWINLENS_CACHE`, else `~/.cache/twinlens`."""
    return Path(os.environ.get("TWINLENS_CACHE") or Path.home() / ".cache" / "twinlens")


def shipped_file(name: str) -> Path:
    """Path of a shipped file, given relative to `configs/`.

    Raises:
        ConfigError: there is no such file.
    """
    path = CONFIGS / name
    if not path.exists():
        raise ConfigError(f"{name}: twinlens ships no such file; `twinlens list-cfg` lists the shipped tasks.")
    return path


def wheel_file(wheel: str, suffix: str) -> Path | None:
    """The first file of an installed Python package whose name ends in `suffix`; None if there is none."""
    try:
        files = importlib.metadata.distribution(wheel).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.suffix == suffix)
    return next((path for path in found if path.exists()), None)


def resolve_path(path: Path) -> Path:
    """Resolve a path of a task file: relative to the working directory, or else to `configs/`."""
    path = path.expanduser()
    return CONFIGS / path if not path.exists() and (CONFIGS / path).exists() else path


def display_path(path: Path) -> str:
    """A path for messages: shipped files relative to `configs/`, other paths unchanged."""
    return path.relative_to(CONFIGS).as_posix() if path.is_relative_to(CONFIGS) else str(path)
