"""How rows lie in a file, one JSON array or one JSON row a line, and writing either without holding it in memory."""

import codecs
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from itertools import repeat
from pathlib import Path
from typing import IO, Any

from tuning.atomic import atomic_writer
from tuning.data.card import card_path
from tuning.errors import ConfigError, DataError


class RowCount:
    """Counts rows, and the distinct ones among them at eight bytes a row."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, row: bytes) -> None:
        self._digests.append(int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little"))

    @property
    def rows(self) -> int:
        return len(self._digests)

    @property
    def distinct(self) -> int:
        import numpy as np  # a set of two million ints is 150 MB, a sorted array of them 16

        return len(np.unique(np.frombuffer(self._digests, dtype=np.uint64))) if self._digests else 0


def open_dataset(path: Path) -> IO[bytes]:
    """A dataset's bytes, past the byte order mark when there is one.

    Raises:
        DataError: the file is missing, a folder, or may not be read.
    """
    try:
        stream = path.open("rb")
        if stream.read(3) != codecs.BOM_UTF8:
            stream.seek(0)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a JSON or JSONL file.") from error
    return stream


def holds_array(stream: IO[bytes]) -> bool:
    """Whether the stream is one JSON array rather than lines; it goes by the first character and not by the name."""
    start = stream.tell()
    first = b""
    while (byte := stream.read(1)) and not first:
        first = byte.strip()
    stream.seek(start)
    return first == b"["


def parse(text: bytes, path: Path, line: int = 1) -> Any:
    """The JSON value in `text`, which begins at that line of the file.

    Raises:
        DataError: it is not UTF-8, or not JSON; the file and line are named.
    """
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        line += text.count(b"\n", 0, error.start)
        raise DataError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        line += error.lineno - 1
        raise DataError(f"{path}, line {line}: not valid JSON ({error.msg}); mend or remove that line.") from error
    except RecursionError as error:
        raise DataError(f"{path}, line {line}: nested too deeply to be a dataset row; remove it.") from error


def parse_array(text: bytes, path: Path) -> list[Any]:
    """The rows of a JSON array.

    Raises:
        DataError: as `parse` does, or the array is empty.
    """
    rows: list[Any] = parse(text, path)
    if not rows:
        raise DataError(f"{path}: holds no rows; give a dataset with at least one.")
    return rows


def dump_array(rows: list[Any]) -> bytes:
    """Rows as `json.dump(rows, indent=4)` lays them out, without the brackets around them."""
    return json.dumps(rows, ensure_ascii=False, indent=4)[2:-2].encode("utf-8")


def array_copies(block: bytes, number: int) -> Iterator[bytes]:
    """A JSON array that holds the rows of `block`, from `dump_array`, so many times over."""
    yield b"[\n" + block
    yield from repeat(b",\n" + block, number - 1)
    yield b"\n]"


def write_hashed(out: Path, pieces: Iterable[bytes]) -> str:
    """Write the pieces as one file, atomically, and return the sha256 of what was written.

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
    """Refuse to write a dataset, or the card beside it, over its own source, whatever links lead there.

    Raises:
        ConfigError: both are one file.
    """
    for written in (out, card_path(out)):
        try:
            same = written.samefile(source)
        except OSError:  # one of the two does not exist, and whoever opens it will say so
            same = False
        if same:
            raise ConfigError(f"{written}: is the input itself, which is never overwritten; choose another OUT.")
