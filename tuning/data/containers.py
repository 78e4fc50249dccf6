"""Containers of dataset files (JSON lines, JSON array, Parquet): detect, read row by row, write row by row."""

# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import codecs
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from tuning.atomic import atomic_writer
from tuning.errors import DataError

Container = Literal["jsonl", "json", "parquet"]
CONTAINER_BY_SUFFIX: dict[str, Container] = {".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}
_CONTAINER_BY_START: dict[bytes, Container] = {b"{": "jsonl", b"[": "json", b"PAR1": "parquet"}
_BATCH = 256  # Parquet rows read at a time
_ROW_GROUP = 4096  # Parquet rows per row group in a written file

RawRow = tuple[str, Any]  # position for messages; JSON value, or the bytes of the line in JSON lines


class RowError(Exception):
    """What is wrong with one row, and the fix; the caller adds the position of the row.

    Args:
        line: line of the fault within the row, from 0.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def open_dataset(path: Path) -> IO[bytes]:
    """Open a dataset file, positioned after its byte-order mark if it has one.

    Raises:
        DataError: the file is missing, is a folder, or cannot be read.
    """
    try:
        stream = path.open("rb")
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        return stream
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the path of a dataset file.") from error


def detect_container(path: Path) -> Container:
    """Detect the container from the first bytes of the file, not from its name.

    Raises:
        DataError: the file cannot be read, is empty, is UTF-16, or is in none of the three containers.
    """
    with open_dataset(path) as stream:
        head = stream.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8.")
    head = head.lstrip()
    if not head:
        raise DataError(f"{path}: has no rows; write at least one conversation into it.")
    for start, container in _CONTAINER_BY_START.items():
        if head.startswith(start):
            return container
    raise DataError(f"{path}: is neither JSON lines, a JSON array nor Parquet; unpack or convert it to one of them.")


def read_raw_rows(path: Path, container: Container) -> Iterator[RawRow]:
    """Read the rows of a file in order; skip blank lines.

    Raises:
        DataError: the file cannot be read, or the container is broken; the message names the row.
    """
    return {"jsonl": _lines, "json": _array, "parquet": _parquet}[container](path)


def parse_json(text: bytes) -> Any:
    """Parse JSON text.

    Raises:
        RowError: the text is not UTF-8 or not JSON; the message names the byte or column.
    """
    try:
        return json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        line, column = text.count(b"\n", 0, error.start), error.start - text.rfind(b"\n", 0, error.start)
        raise RowError(f"byte {column} is not UTF-8 text; save the file as UTF-8.", line) from error
    except json.JSONDecodeError as error:
        if text.strip() == b"{":
            raise RowError("the row is split over several lines; write each row on one line, or all in [ ].") from error
        message = f"broken JSON at column {error.colno} ({error.msg}); fix or delete the line."
        raise RowError(message, error.lineno - 1) from error
    except RecursionError as error:
        raise RowError("the JSON is nested too deeply to be a conversation; fix or delete the line.") from error


def write_raw_rows(path: Path, rows: Iterable[dict[str, Any]], container: Container, columns: dict[str, Any]) -> None:
    """Write rows one by one, atomically.

    Args:
        columns: keys of the rows and their types, which Parquet requires before the first row: `str`, `bool`, `[type]`
            for a list, `{key: type}` for a mapping.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    with atomic_writer(path) as stream:
        if container == "parquet":
            _write_parquet(stream, rows, columns)
            return
        opening, separator, closing = (b"", b"\n", b"\n") if container == "jsonl" else (b"[\n", b",\n", b"\n]\n")
        stream.write(opening)
        for index, row in enumerate(rows):
            stream.write((separator if index else b"") + json.dumps(row, ensure_ascii=False).encode())
        stream.write(closing)


def _lines(path: Path) -> Iterator[RawRow]:
    with open_dataset(path) as stream:
        for number, line in enumerate(stream, 1):
            if not line.isspace():
                yield f"{path}, line {number}", line


def _array(path: Path) -> Iterator[RawRow]:
    import ijson

    number = 0
    with open_dataset(path) as stream:
        try:
            for number, value in enumerate(ijson.items(stream, "item"), 1):
                yield f"{path}, row {number}", value
        except ijson.JSONError as error:
            raise DataError(f"{path}, {_array_fault(str(error), number)}") from error


def _array_fault(message: str, read: int) -> str:
    """The row and the fix for an error of ijson after `read` rows."""
    if "UTF8" in message:
        return f"row {read + 1}: not UTF-8 text; save the file as UTF-8."
    if "premature EOF" in message:
        return f"row {read + 1}: the file ends before the end of its array; copy the file again."
    if "trailing garbage" in message:
        return f"row {read}: there is text after the closing bracket of the array; keep one array in the file."
    reason = message.partition("\n")[0].partition("error: ")[2].rstrip(".") or "cannot be parsed"
    return f"row {read + 1}: broken JSON ({reason}); fix or delete the row."


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", value
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path}, row {number + 1}: broken Parquet ({reason}); copy the file again.") from error


def _write_parquet(stream: IO[bytes], rows: Iterable[dict[str, Any]], columns: dict[str, Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])
    rest = iter(rows)
    with pq.ParquetWriter(stream, schema) as writer:
        while batch := list(islice(rest, _ROW_GROUP)):
            table = [{name: _wrap_single_text(row.get(name), kind) for name, kind in columns.items()} for row in batch]
            writer.write_table(pa.Table.from_pylist(table, schema=schema))


def _wrap_single_text(value: Any, kind: Any) -> Any:
    """A list with one text if the column has lists: JSON rows can mix both, a Parquet column cannot."""
    return [value] if isinstance(kind, list) and isinstance(value, str) else value


def _arrow_type(kind: Any) -> Any:
    """The Arrow type of `str`, `bool`, `[type]` (a list) or `{key: type}` (a struct)."""
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.items()])
    return pa.bool_() if kind is bool else pa.string()
