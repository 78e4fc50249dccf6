"""JSON and JSON Lines files as bytes: copy rows many times without parsing each copy."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from tuning.atomic import atomic_writer
from tuning.data.card import card_path
from tuning.data.containers import RowError, parse_json
from tuning.errors import ConfigError, DataError


class RowCount:
    """Counts rows and distinct rows; uses 8 bytes per row."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, row: bytes) -> None:
        self._digests.append(int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little"))

    @property
    def rows(self) -> int:
        return len(self._digests)

    @property
    def distinct(self) -> int:
        import numpy as np  # a set of two million integers takes 150 MB, a sorted array 16 MB

        return len(np.unique(np.frombuffer(self._digests, dtype=np.uint64))) if self._digests else 0


def is_array(stream: IO[bytes]) -> bool:
    """Whether the stream contains one JSON array, not JSON lines; decided by the first character, not by the name."""
    start = stream.tell()
    head = stream.read(1 << 16).lstrip()
    stream.seek(start)
    return head.startswith(b"[")


def parse(text: bytes, path: Path, line: int = 1) -> Any:
    """Parse JSON text that starts at `line` of the file.

    Raises:
        DataError: the text is not UTF-8 or not JSON; the message names the file and line.
    """
    try:
        return parse_json(text)
    except RowError as error:
        raise DataError(f"{path}, line {line + error.line}: {error}") from error


def parse_array(text: bytes, path: Path) -> list[Any]:
    """Parse the rows of a JSON array.

    Raises:
        DataError: as in `parse`, or the array is empty.
    """
    rows: list[Any] = parse(text, path)
    if not rows:
        raise DataError(f"{path}: has no rows; give a dataset with at least one.")
    return rows


def dump_array(rows: list[Any]) -> bytes:
    """Rows as in `json.dump(rows, indent=4)`, without the brackets of the array."""
    return json.dumps(rows, ensure_ascii=False, indent=4)[2:-2].encode("utf-8")


def array_copies(block: bytes, number: int) -> Iterator[bytes]:
    """A JSON array with `number` copies of the rows in `block`, which comes from `dump_array`."""
    yield b"[\n" + block
    yield from repeat(b",\n" + block, number - 1)
    yield b"\n]"


def write_hashed(out: Path, pieces: Iterable[bytes]) -> str:
    """Write the pieces as one file, atomically; return the sha256 of the file.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    digest = hashlib.sha256()
    with atomic_writer(out) as stream:
        for piece in pieces:
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def refuse_overwriting(source: Path, out: Path) -> None:
    """Refuse to overwrite the source with the dataset or its card; follows symbolic links.

    Raises:
        ConfigError: `out` or its card is the source file.
    """
    for written in (out, card_path(out)):
        with suppress(OSError):  # a missing file is reported when it is opened
            if written.samefile(source):
                raise ConfigError(f"{written}: is the input file, which is never overwritten; choose another OUT.")
