"""Dataset containers (JSON lines, JSON array, Parquet): detect, read row by row, write row by row."""

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

_BATCH = 256  # Parquet rows read at once
_GROUP = 4096  # Parquet rows written as one row group


RawRow = tuple[int, str, Any]  # number from 1, position for messages, and the JSON value (JSON lines: the line's bytes)


class RowError(Exception):
    """A fault of one row and its fix; the caller adds the row's position."""


def detect_container(path: Path) -> Container:
    """The container of a file, from its first bytes and not from its name.

    Raises:
        DataError: not a file, cannot be read, empty, not UTF-8, or none of the three.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the dataset file in it.")
    with open_file(path) as stream:
        head = stream.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8.")
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.lstrip()
    if not start:
        raise DataError(f"{path}: has no rows; write at least one conversation into it.")
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "jsonl"
    raise DataError(f"{path}: is neither JSON lines, a JSON array nor Parquet; unpack or convert it to one of them.")


def read_raw_rows(path: Path, container: Container) -> Iterator[RawRow]:
    """The rows of a file in order, without blank lines.

    Raises:
        DataError: the file cannot be read or the container is broken, with the row of the fault.
    """
    return {"jsonl": _lines, "json": _array, "parquet": _parquet}[container](path)


def parse_json(line: bytes) -> Any:
    """The JSON value of one line.

    Raises:
        RowError: not UTF-8, or not JSON, with the column.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"byte {error.start + 1} is not UTF-8 text; save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        if line.strip() == b"{":
            raise RowError("the row spans several lines; write each row on one line, or all in [ ].") from error
        raise RowError(f"broken JSON at column {error.colno} ({error.msg}); fix or delete the line.") from error
    except RecursionError as error:
        raise RowError("the JSON is nested too deeply to be a conversation; fix or delete the line.") from error


def write_raw_rows(path: Path, rows: Iterable[dict[str, Any]], container: Container, columns: dict[str, Any]) -> int:
    """Write rows one by one, atomically; return the number of rows.

    Args:
        columns: the keys of the rows and their types, which Parquet needs before the first row: `str`, `bool`, `[type]`
            for a list, `{key: type}` for a mapping.

    Raises:
        DeviceError: the folder cannot be written or the disk is full.
    """
    with atomic_writer(path) as stream:
        match container:
            case "jsonl":
                return _write_text(stream, rows, "", "\n", "\n")
            case "json":
                return _write_text(stream, rows, "[\n", ",\n", "\n]\n")
            case "parquet":
                return _write_parquet(stream, rows, columns)


def open_file(path: Path) -> IO[bytes]:
    """The bytes of a dataset file, after its byte-order mark if it has one.

    Raises:
        DataError: no such file, or it cannot be read.
    """
    try:
        stream = path.open("rb")
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        return stream
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from error


def _lines(path: Path) -> Iterator[RawRow]:
    number = 0
    with open_file(path) as stream:
        for position, line in enumerate(stream, 1):
            if not line.isspace():
                number += 1
                yield number, f"{path}, line {position}", line


def _array(path: Path) -> Iterator[RawRow]:
    import ijson

    number = 0
    with open_file(path) as stream:
        try:
            for number, value in enumerate(ijson.items(stream, "item"), 1):
                yield number, f"{path}, row {number}", value
        except ijson.JSONError as error:
            raise DataError(f"{path}, {_array_fault(str(error), number)}") from error


def _array_fault(message: str, read: int) -> str:
    if "UTF8" in message:
        return f"row {read + 1}: not UTF-8 text; save the file as UTF-8."
    if "premature EOF" in message:
        return f"row {read + 1}: the file ends before its array does; copy the file again."
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
                    yield number, f"{path}, row {number}", value
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path}, row {number + 1}: broken Parquet ({reason}); copy the file again.") from error


def _write_text(stream: IO[bytes], rows: Iterable[dict[str, Any]], opening: str, between: str, closing: str) -> int:
    count = 0
    stream.write(opening.encode())
    for row in rows:
        if count:
            stream.write(between.encode())
        stream.write(json.dumps(row, ensure_ascii=False).encode())
        count += 1
    stream.write(closing.encode())
    return count


def _write_parquet(stream: IO[bytes], rows: Iterable[dict[str, Any]], columns: dict[str, Any]) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, _arrow_type(kind)) for name, kind in columns.items()])
    count, rest = 0, iter(rows)
    with pq.ParquetWriter(stream, schema) as writer:
        while batch := list(islice(rest, _GROUP)):
            table = [{name: _wrap_lone_value(row.get(name), kind) for name, kind in columns.items()} for row in batch]
            writer.write_table(pa.Table.from_pylist(table, schema=schema))
            count += len(batch)
    return count


def _wrap_lone_value(value: Any, kind: Any) -> Any:
    """A list of one value where the column has lists: JSON rows may mix the two, a Parquet column may not."""
    return [value] if isinstance(kind, list) and isinstance(value, str) else value


def _arrow_type(kind: Any) -> Any:
    """`str`, `bool`, `[kind]` for a list, `{name: kind}` for a struct, as an Arrow type."""
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.items()])
    return pa.bool_() if kind is bool else pa.string()
