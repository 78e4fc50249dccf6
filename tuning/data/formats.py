"""Dataset files of any known format in, conversations out; and the other way round.

The container (JSON lines, a JSON array, Parquet) is told by the file's bytes, the row format by its first row.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from tuning.data.containers import (
    Container,
    Record,
    RowError,
    detect_container,
    parse_line,
    read_records,
    write_records,
)
from tuning.data.conversation import Conversation
from tuning.data.row_readers import ParsedRow, RowChange, RowFormat, detect_row_format, read_row
from tuning.data.row_writers import COLUMNS, write_row
from tuning.errors import DataError

Result = TypeVar("Result")

_REMEMBERED = 256  # rows kept to recognize copies: repeated files cost the time and memory of their distinct rows


@dataclass(frozen=True, slots=True)
class FileFormat:
    """What a dataset file is: the container, and the format of its rows."""

    container: Container
    schema: RowFormat


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One conversation and where it came from.

    Args:
        number: counts the file's rows from 1.
        where: `persona.jsonl, line 7` or `persona.json, row 7`, for messages.
        conversation: the same object for copies of a row that stand near each other.
    """

    number: int
    where: str
    conversation: Conversation


@dataclass(slots=True)
class ReadNotes:
    """What reading did not take over as it stood, counted while rows pass.

    Args:
        rows: read so far.
        ignored: rows by each key that was not used.
        changes: how often something was left out or changed.
    """

    layout: FileFormat | None = None
    rows: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    changes: Counter[RowChange] = field(default_factory=Counter)

    def sentences(self) -> list[str]:
        """A line for each thing that people should know."""
        ignored = [f"ignored key {key!r} ({count} rows)" for key, count in sorted(self.ignored.items())]
        return ignored + [f"{change} ({count} times)" for change, count in sorted(self.changes.items())]


def detect_format(path: Path) -> FileFormat:
    """The container and the row format of a file, from its first row.

    Raises:
        DataError: the file cannot be read, is empty, or its first row has no known format.
    """
    container = detect_container(path)
    first = next(iter(read_records(path, container)), None)
    if first is None:
        raise DataError(f"{path}: has no rows; write at least one conversation into it.")
    row = _at(first.where, _value, first)
    schema = detect_row_format(row)
    if schema is None:
        keys = f"its keys are {', '.join(map(str, row)) or 'none'}" if isinstance(row, dict) else "it is no object"
        raise DataError(
            f"{first.where}: no known row format ({keys}); write messages, conversation (XTuner), conversations "
            "(ShareGPT, LLaVA), instruction and output (alpaca) or text (oasst)."
        )
    return FileFormat(container, schema)


def read_rows(
    path: Path, notes: ReadNotes | None = None, mend: Callable[[int, Any], Any] | None = None
) -> Iterator[SourceRow]:
    """Conversations of a dataset file, in order, one at a time.

    Args:
        notes: collects what was ignored or changed.
        mend: given a row's number and its JSON value before it is read, returns the value to read instead; may raise
            `RowError`.

    Raises:
        DataError: file, row and field that are wrong, and the fix.
    """
    layout = detect_format(path)
    notes = notes if notes is not None else ReadNotes()
    notes.layout = layout
    read, same = _cached_readers(layout.schema)
    kept = False
    for record in read_records(path, layout.container):
        if mend is not None:
            value = _at(record.where, mend, record.number, _at(record.where, _value, record))
            reading = _at(record.where, read_row, value, layout.schema)
        else:
            reading = _at(record.where, read, record.value)
        notes.rows += 1
        if reading.ignored:
            notes.ignored.update(reading.ignored)
        if reading.changes:
            notes.changes.update(reading.changes)
        if reading.conversation is not None:
            kept = True
            yield SourceRow(record.number, record.where, same(reading.conversation))
    if not kept:
        raise DataError(f"{path}: no row of it has an answer; add at least one conversation.")


def write_rows(path: Path, rows: Iterable[SourceRow | Conversation], schema: RowFormat, container: Container) -> int:
    """Write conversations as a dataset file, which appears under its name once it is whole; return the rows written.

    Args:
        rows: conversations, or rows of another file, which errors then name.

    Raises:
        DataError: the format cannot say something in a conversation; names its row.
        DeviceError: the folder cannot be written or the disk is full.
    """
    if schema not in COLUMNS:
        raise DataError(f"{path}: {schema} rows are only read; write {', '.join(COLUMNS)}.")
    written = (
        _at(row.where, write_row, row.conversation, schema, number)
        if isinstance(row, SourceRow)
        else _at(f"{path}, row {number}", write_row, row, schema, number)
        for number, row in enumerate(rows, 1)
    )
    return write_records(path, written, container, COLUMNS[schema])


def _cached_readers(schema: RowFormat) -> tuple[Callable[[Any], ParsedRow], Callable[[Conversation], Conversation]]:
    """How to read a record's value, and to find the equal conversation that was read a little earlier."""

    @lru_cache(maxsize=_REMEMBERED)
    def read_line(line: bytes) -> ParsedRow:
        return read_row(parse_line(line), schema)

    @lru_cache(maxsize=_REMEMBERED)
    def same(conversation: Conversation) -> Conversation:
        return conversation

    def read(value: Any) -> ParsedRow:
        return read_line(value) if isinstance(value, bytes) else read_row(value, schema)

    return read, same


def _value(record: Record) -> Any:
    return parse_line(record.value) if isinstance(record.value, bytes) else record.value


def _at(where: str, act: Callable[..., Result], *arguments: Any) -> Result:
    """Do something with a row, adding its place to whatever is wrong with it."""
    try:
        return act(*arguments)
    except RowError as fault:
        raise DataError(f"{where}: {fault}") from fault
