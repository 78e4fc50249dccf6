"""Dataset files of every known format: read as conversations, write from conversations.

The container (JSON lines, a JSON array, Parquet) is detected from the bytes, the row format from the first row.
"""

# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning.data.containers import (
    Container,
    RowError,
    detect_container,
    parse_json,
    read_raw_rows,
    write_raw_rows,
)
from tuning.data.conversation import Conversation
from tuning.data.row_readers import FileFormat, ReadNotes, RowFormat, detect_row_format, read_row
from tuning.data.row_writers import COLUMNS, write_row
from tuning.errors import DataError

_CACHED_ROWS = 256  # recent rows, to recognize copies: a repeated file costs the time and memory of its distinct rows


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One conversation and its position in a file.

    Args:
        number: row number in the file, from 1.
        where: `persona.jsonl, line 7` or `persona.json, row 7`, for messages.
        conversation: the same object for copies of a row that are near each other.
    """

    number: int
    where: str
    conversation: Conversation


def detect_format(path: Path) -> FileFormat:
    """The container and the row format of a file, from its first row.

    Raises:
        DataError: the file cannot be read, is empty, or its first row has no known format.
    """
    container = detect_container(path)
    for _, where, value in read_raw_rows(path, container):
        with _position(where):
            row = parse_json(value) if isinstance(value, bytes) else value
        if (schema := detect_row_format(row)) is not None:
            return FileFormat(container, schema)
        keys = f"its keys are {', '.join(map(str, row)) or 'none'}" if isinstance(row, dict) else "it is no object"
        raise DataError(
            f"{where}: no known row format ({keys}); write messages, conversation (XTuner), conversations "
            "(ShareGPT, LLaVA), instruction and output (alpaca) or text (oasst)."
        )
    raise DataError(f"{path}: has no rows; write at least one conversation into it.")


def read_rows(
    path: Path, notes: ReadNotes | None = None, repair: Callable[[int, Any], Any] | None = None
) -> Iterator[SourceRow]:
    """Conversations of a dataset file, in order, one at a time.

    Args:
        notes: collects what was ignored or changed.
        repair: gets a row's number and JSON value, returns the value to read instead; may raise `RowError`.

    Raises:
        DataError: file, row and field that are wrong, and the fix.
    """
    file_format = detect_format(path)
    notes = notes if notes is not None else ReadNotes()
    notes.file_format = file_format

    def read_value(value: Any) -> tuple[Conversation | None, ReadNotes]:
        row_notes = ReadNotes()
        return read_row(value, file_format.schema, row_notes), row_notes

    @lru_cache(maxsize=_CACHED_ROWS)
    def read_line(line: bytes) -> tuple[Conversation | None, ReadNotes]:
        return read_value(parse_json(line))

    @lru_cache(maxsize=_CACHED_ROWS)
    def first_equal(conversation: Conversation) -> Conversation:
        return conversation

    empty = True
    for number, where, value in read_raw_rows(path, file_format.container):
        with _position(where):
            if repair is not None:
                value = repair(number, parse_json(value) if isinstance(value, bytes) else value)
            conversation, row_notes = read_line(value) if isinstance(value, bytes) else read_value(value)
        notes.add(row_notes)
        if conversation is not None:
            empty = False
            yield SourceRow(number, where, first_equal(conversation))
    if empty:
        raise DataError(f"{path}: no row of it has an answer; add at least one conversation.")


def write_rows(path: Path, rows: Iterable[SourceRow | Conversation], schema: RowFormat, container: Container) -> int:
    """Write conversations as a dataset file, atomically; return the number of rows.

    Args:
        rows: conversations, or rows of another file, which errors then name.

    Raises:
        DataError: the format has no place for something in a conversation; names its row.
        DeviceError: the folder cannot be written or the disk is full.
    """
    if schema not in COLUMNS:
        raise DataError(f"{path}: {schema} rows are only read; write {', '.join(COLUMNS)}.")

    def written() -> Iterator[dict[str, Any]]:
        for number, row in enumerate(rows, 1):
            source = row if isinstance(row, SourceRow) else SourceRow(number, f"{path}, row {number}", row)
            with _position(source.where):
                value = write_row(source.conversation, schema, number)
            yield value

    return write_raw_rows(path, written(), container, COLUMNS[schema])


@contextmanager
def _position(where: str) -> Generator[None, None, None]:
    """Add the position of a row to the faults of that row."""
    try:
        yield
    except RowError as error:
        raise DataError(f"{where}: {error}") from error
