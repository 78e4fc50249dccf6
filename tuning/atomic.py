"""Atomic writes: a file or folder has its final name only when all of it is on disk."""

import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

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


def hidden_name(destination: Path) -> Path:
    """Where `atomic_folder(destination, shared=True)` collects the files."""
    return destination.with_name(f".{destination.name}")


@contextmanager
def atomic_folder(destination: Path, *, replace: bool = False, shared: bool = False) -> Generator[Path, None, None]:
    """A hidden folder that becomes `destination` when the block ends well, and is removed when it does not.

    The modes of files and folders follow the umask. An empty folder of that name is replaced.

    Args:
        replace: replace a folder that holds files too, once the new one is complete.
        shared: give the hidden folder a fixed name (`hidden_name`), so that other processes write into it as well.

    Raises:
        DeviceError: the folder cannot be written, the disk is full, or the destination holds files.
    """
    unfinished: Path | None = None
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if shared:
            unfinished = hidden_name(destination)
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
        else:
            unfinished = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
        yield unfinished
        mask = _umask()
        for path in (unfinished, *unfinished.rglob("*")):  # temporary folders and safetensors are private by default
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        if replace:
            shutil.rmtree(destination, ignore_errors=True)
        elif destination.exists():
            destination.rmdir()
        unfinished.rename(destination)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(f"{destination}: cannot be written ({reason}); free space or give another folder.") from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write UTF-8 text, whole or as a stream of pieces, so that readers see the old file or the new one."""
    with atomic_writer(path) as stream:
        for piece in (text,) if isinstance(text, str) else text:
            stream.write(piece.encode("utf-8"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
