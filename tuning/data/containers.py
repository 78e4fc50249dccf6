"""The three files rows come in: JSON lines, one JSON array, Parquet. Rows pass one by one, whatever the file's size."""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from tuning.atomic import atomic_writer
from tuning.errors import DataError

Container = Literal["jsonl", "json", "parquet"]
CONTAINER_BY_SUFFIX: dict[str, Container] = {".jsonl": "jsonl", ".json": "json", ".parquet": "parquet"}

_BATCH = 256  # Parquet rows held at once when reading
_GROUP = 4096  # Parquet rows written as one row group


class RowError(Exception):
    """What is wrong with one row and how to mend it; whoever knows where the row stands adds that."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row as the container holds it.

    Args:
        number: counts rows from 1.
        where: the row's place, for messages.
        value: the JSON value, or the line's bytes where the container is JSON lines (`parse_line` reads them).
    """

    number: int
    where: str
    value: Any


def detect_container(path: Path) -> Container:
    """Tell the container by the file's first bytes, whatever its name ends in.

    Raises:
        DataError: not a file, cannot be read, empty, not UTF-8, or none of the three.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the dataset file in it.")
    with _opened(path) as stream:
        head = stream.read(1 << 16)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8.")
    if head.startswith(b"PAR1"):
        return "parquet"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if not start:
        raise DataError(f"{path}: has no rows; write at least one conversation into it.")
    if start.startswith(b"["):
        return "json"
    if start.startswith(b"{"):
        return "jsonl"
    raise DataError(f"{path}: is neither JSON lines, a JSON array nor Parquet; unpack or convert it to one of them.")


def read_records(path: Path, container: Container) -> Iterator[Record]:
    """Every row in order, blank lines left out.

    Raises:
        DataError: the file cannot be read or the container is broken, with the row where it breaks.
    """
    match container:
        case "jsonl":
            return _lines(path)
        case "json":
            return _array(path)
        case "parquet":
            return _parquet(path)


def parse_line(line: bytes) -> Any:
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
            raise RowError("the row goes on over several lines; write each row on one line, or all in [ ].") from error
        raise RowError(f"broken JSON at column {error.colno} ({error.msg}); mend or delete the line.") from error
    except RecursionError as error:
        raise RowError("the JSON is nested too deeply to be a conversation; mend or delete the line.") from error


def write_records(path: Path, rows: Iterable[dict[str, Any]], container: Container, columns: dict[str, Any]) -> int:
    """Write rows one by one, the file appearing under its name when all are written; return how many.

    Args:
        columns: the rows' keys and what they hold, for Parquet, which must know before the first row: `str`, `bool`,
            `[kind]` for a list, `{key: kind}` for a mapping.

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


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions.") from error


def _lines(path: Path) -> Iterator[Record]:
    number = 0
    with _opened(path) as stream:
        for position, line in enumerate(stream, 1):
            if position == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.isspace() or not line:
                continue
            number += 1
            yield Record(number, f"{path}, line {position}", line)


def _array(path: Path) -> Iterator[Record]:
    import ijson

    number = 0
    with _opened(path) as stream:
        if stream.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
            stream.seek(0)
        try:
            for value in ijson.items(stream, "item"):
                number += 1
                yield Record(number, f"{path}, row {number}", value)
        except ijson.JSONError as error:
            raise DataError(f"{path}, {_array_fault(str(error), number)}") from error


def _array_fault(message: str, read: int) -> str:
    if "UTF8" in message:
        return f"row {read + 1}: not UTF-8 text; save the file as UTF-8."
    if "premature EOF" in message:
        return f"row {read + 1}: the file ends before its array does; copy the whole file again."
    if "trailing garbage" in message:
        return f"row {read}: something stands behind the array's closing bracket; keep one array in the file."
    reason = message.partition("\n")[0].partition("error: ")[2].rstrip(".") or "cannot be parsed"
    return f"row {read + 1}: broken JSON ({reason}); mend or delete the row."


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, f"{path}, row {number}", value)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise DataError(f"{path}, row {number + 1}: broken Parquet ({reason}); copy the whole file again.") from error


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
    """A lone value where a column holds lists becomes a list of one: JSON rows may mix the two, a column may not."""
    return [value] if isinstance(kind, list) and isinstance(value, str) else value


def _arrow_type(kind: Any) -> Any:
    """`str`, `bool`, `[kind]` for a list, `{name: kind}` for a struct, as an Arrow type."""
    import pyarrow as pa

    if isinstance(kind, list):
        return pa.list_(_arrow_type(kind[0]))
    if isinstance(kind, dict):
        return pa.struct([(name, _arrow_type(inner)) for name, inner in kind.items()])
    return pa.bool_() if kind is bool else pa.string()
