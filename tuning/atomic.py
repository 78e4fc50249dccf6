"""Atomic writes: a file or folder gets its final name only when it is complete on disk."""

import os
import secrets
import shutil
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from tuning.errors import DeviceError


@contextmanager
def explain_write_errors(path: Path, alternative: str = "place") -> Generator[None, None, None]:
    """Report an error while writing to `path` as one sentence.

    Args:
        alternative: what the user can choose instead, such as `folder` or an option.

    Raises:
        DeviceError: the block raised an OSError, or safetensors could not write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(
            f"{path}: cannot be written ({reason}); free space or choose another {alternative}."
        ) from error


@contextmanager
def atomic_writer(path: Path) -> Generator[IO[bytes], None, None]:
    """A binary stream to a temporary file, which is renamed to `path` at the end of the block.

    If the block raises, the temporary file is removed and `path` stays as it was.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # /dev/stdout, /dev/full, a pipe: cannot be replaced
            with path.open("wb") as stream:
                yield stream
            return
        temporary = _temporary_path(path)
        try:
            with temporary.open("xb") as stream:
                yield stream
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def hidden_name(destination: Path) -> Path:
    """The temporary folder of `atomic_folder(destination, shared=True)`."""
    return destination.with_name(f".{destination.name}")


@contextmanager
def atomic_folder(destination: Path, *, replace: bool = False, shared: bool = False) -> Generator[Path, None, None]:
    """A temporary folder, which is renamed to `destination` at the end of the block.

    If the block raises, the temporary folder is removed and `destination` stays as it was. The modes of files and
    folders follow the umask. An empty folder at `destination` is replaced.

    Args:
        replace: also replace a folder that contains files, after the new folder is complete.
        shared: use the fixed name `hidden_name(destination)`, so that other processes can write into the folder too.

    Raises:
        DeviceError: the folder cannot be written, the disk is full, or `destination` contains files.
    """
    with explain_write_errors(destination, "folder"):
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = hidden_name(destination) if shared else _temporary_path(destination)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            umask = os.umask(0)
            os.umask(umask)
            for path in (temporary, *temporary.rglob("*")):  # safetensors creates files that only their owner can read
                path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
            if replace:
                shutil.rmtree(destination, ignore_errors=True)
            elif destination.exists():
                destination.rmdir()
            temporary.rename(destination)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write UTF-8 text to `path`, from one string or an iterable of strings; readers see the old or the new file."""
    with atomic_writer(path) as stream:
        for piece in (text,) if isinstance(text, str) else text:
            stream.write(piece.encode("utf-8"))


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")
