"""Dataset files of all known formats: read them as conversations, write conversations.

The container (JSON lines, JSON array, Parquet) is detected from the bytes, the row format from the first row.
"""

# pyright: reportUnknownArgumentType=false

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuning.data.containers import Container, RowError, detect_container, parse_json, read_raw_rows, write_raw_rows
from tuning.data.conversation import Conversation
from tuning.data.row_readers import FileFormat, ReadNotes, RowFormat, detect_row_format, read_row
from tuning.data.row_writers import COLUMNS, write_row
from tuning.errors import DataError

_CACHED_ROWS = 256  # recent rows; a file with many copies costs the time and memory of its distinct rows


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One conversation and its position in a file.

    Args:
        where: `persona.jsonl, line 7` or `persona.json, row 7`, for messages.
        conversation: the same object for equal rows that are close together.
    """

    where: str
    conversation: Conversation


def detect_format(path: Path) -> FileFormat:
    """Detect the container and the row format of a file, the latter from its first row.

    Raises:
        DataError: the file cannot be read, is empty, or its first row has no known format.
    """
    container = detect_container(path)
    for where, value in read_raw_rows(path, container):
        with _position(where):
            row = parse_json(value) if isinstance(value, bytes) else value
        if (row_format := detect_row_format(row)) is not None:
            return FileFormat(container, row_format)
        keys = f"its keys are {', '.join(map(str, row)) or 'none'}" if isinstance(row, dict) else "it is not an object"
        raise DataError(
            f"{where}: unknown row format ({keys}); write messages, conversation (XTuner), conversations "
            "(ShareGPT, LLaVA), instruction and output (alpaca) or text (oasst)."
        )
    raise DataError(f"{path}: has no rows; write at least one conversation into it.")


def read_rows(
    path: Path, notes: ReadNotes | None = None, repair: Callable[[int, Any], Any] | None = None
) -> Iterator[SourceRow]:
    """Read the conversations of a dataset file in order, one at a time.

    Args:
        notes: receives the counts of what was ignored or changed.
        repair: gets the number (from 1) and JSON value of a row, returns the value to use; may raise `RowError`.

    Raises:
        DataError: a row is wrong; the message names the file, row, field and fix.
    """
    file_format = detect_format(path)
    notes = notes if notes is not None else ReadNotes()
    notes.file_format = file_format
    row_format = file_format.row_format

    @lru_cache(maxsize=_CACHED_ROWS)
    def read_line(line: bytes) -> tuple[Conversation | None, ReadNotes]:
        return read_row(parse_json(line), row_format)

    @lru_cache(maxsize=_CACHED_ROWS)
    def first_equal(conversation: Conversation) -> Conversation:
        return conversation

    empty = True
    for number, (where, value) in enumerate(read_raw_rows(path, file_format.container), 1):
        with _position(where):
            if repair is not None:
                value = repair(number, parse_json(value) if isinstance(value, bytes) else value)
            conversation, row_notes = read_line(value) if isinstance(value, bytes) else read_row(value, row_format)
        notes.add(row_notes)
        if conversation is not None:
            empty = False
            yield SourceRow(where, first_equal(conversation))
    if empty:
        raise DataError(f"{path}: no row has an answer; add at least one conversation.")


def write_rows(
    path: Path, rows: Iterable[SourceRow | Conversation], row_format: RowFormat, container: Container
) -> int:
    """Write conversations as a dataset file, atomically; return the number of rows.

    Args:
        rows: conversations, or rows of another file, whose position is then named in errors.

    Raises:
        DataError: the format cannot represent a conversation; the message names its row.
        DeviceError: the folder cannot be written or the disk is full.
    """
    count = 0

    def written() -> Iterator[dict[str, Any]]:
        nonlocal count
        for count, row in enumerate(rows, 1):
            source = row if isinstance(row, SourceRow) else SourceRow(f"{path}, row {count}", row)
            with _position(source.where):
                value = write_row(source.conversation, row_format, count)
            yield value

    write_raw_rows(path, written(), container, COLUMNS[row_format])
    return count


@contextmanager
def _position(where: str) -> Generator[None, None, None]:
    """Add the position of a row to its errors."""
    try:
        yield
    except RowError as error:
        raise DataError(f"{where}: {error}") from error
