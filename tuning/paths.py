"""Paths: the files that ship with the kit, the cache folder, and files of installed packages."""

import importlib.metadata
import os
from pathlib import Path

from tuning.errors import ConfigError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def cache_folder() -> Path:
    """Where the kit keeps what is costly to make again: `$TWINLENS_CACHE`, else `~/.cache/twinlens`."""
    return Path(os.environ.get("TWINLENS_CACHE") or Path.home() / ".cache" / "twinlens")


def shipped_file(name: str) -> Path:
    """A file under `configs/`, by its path there.

    Raises:
        ConfigError: nothing of that name ships with the kit.
    """
    path = CONFIGS / name
    if not path.exists():
        raise ConfigError(f"{name}: nothing of that name ships with twinlens; `twinlens list-cfg` lists what does.")
    return path


def wheel_file(wheel: str, suffix: str) -> Path | None:
    """The first file of an installed Python package that ends in `suffix`; None when there is none."""
    try:
        files = importlib.metadata.distribution(wheel).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if file.suffix == suffix)
    return next((path for path in found if path.exists()), None)


def resolve_path(path: Path) -> Path:
    """A path from a task file: as it stands, from the working directory, or else of that name under `configs/`."""
    path = path.expanduser()
    return CONFIGS / path if not path.exists() and (CONFIGS / path).exists() else path


def display_path(path: Path) -> str:
    """A path as people know it: a shipped file by its name under `configs/`, others as they stand."""
    return path.relative_to(CONFIGS).as_posix() if path.is_relative_to(CONFIGS) else str(path)
