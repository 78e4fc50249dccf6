"""Atomic writes: a file or folder has its final name only when all of it is on disk."""

import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tuning.errors import DeviceError


@contextmanager
def atomic_writer(path: Path) -> Generator[IO[bytes], None, None]:
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
    with atomic_writer(path) as stream:
        for piece in (text,) if isinstance(text, str) else text:
            stream.write(piece.encode("utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
