"""Writing files so that a half-written one never stands under its final name, and finding what ships with the kit."""

import importlib.metadata
import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tuning.errors import ConfigError, DeviceError

SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def cache_folder() -> Path:
    """Where the kit keeps what is costly to make again: `$TWINLENS_CACHE`, else `~/.cache/twinlens`."""
    return Path(os.environ.get("TWINLENS_CACHE") or Path.home() / ".cache" / "twinlens")


def shipped(name: str) -> Path:
    """A file under `configs/`, by its path there.

    Raises:
        ConfigError: nothing of that name ships with the kit.
    """
    path = SHIPPED / name
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
    return SHIPPED / path if not path.exists() and (SHIPPED / path).exists() else path


def shown(path: Path) -> str:
    """A path as people know it: a shipped file by its name under `configs/`, others as they stand."""
    return path.relative_to(SHIPPED).as_posix() if path.is_relative_to(SHIPPED) else str(path)


@contextmanager
def replacing(path: Path) -> Generator[IO[bytes], None, None]:
    """A binary stream that becomes `path` when the block ends well, and leaves nothing behind when it does not.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # /dev/stdout, /dev/full, a pipe: nothing to replace
            with path.open("wb") as stream:
                yield stream
            return
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise DeviceError(
            f"{path}: cannot be written ({error.strerror}); free space or choose another place."
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write UTF-8 text, whole or as a stream of pieces, so that readers see the old file or the new one."""
    with replacing(path) as stream:
        for piece in (text,) if isinstance(text, str) else text:
            stream.write(piece.encode("utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
