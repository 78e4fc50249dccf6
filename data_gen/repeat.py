"""Repeat the rows of a dataset several times in one file."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from data_gen.checks import check_positive
from data_gen.container import (
    RowCount,
    array_copies,
    dump_array,
    is_array,
    parse,
    parse_array,
    refuse_overwriting,
    write_hashed,
)
from tuning.data.card import DatasetCard, file_sha256, read_card, write_card
from tuning.data.containers import open_dataset
from tuning.errors import DataError


def repeat_dataset(source: Path, out: Path, number: int) -> DatasetCard:
    """Write all rows of `source` `number` times, in the same container, and write the card of `out`.

    A JSON array is written as `json.dump(rows * number, ensure_ascii=False, indent=4)` writes it; its rows are in
    memory once. JSON lines are copied byte by byte in constant memory.

    Raises:
        ConfigError: `number` is below one, or `out` is the source.
        DataError: the source cannot be read, is empty, or is not JSON.
        DeviceError: `out` cannot be written.
    """
    check_positive("-n", number)
    refuse_overwriting(source, out)
    count = RowCount()
    with open_dataset(source) as stream:
        card = read_card(source) or DatasetCard(made_by="", rows=0, distinct=0, sha256="")
        repeated = _repeat_array if is_array(stream) else _repeat_lines
        sha256 = write_hashed(out, repeated(stream, source, number, count))
    card = dataclasses.replace(
        card,
        made_by=shlex.join(["twinlens", "data", "repeat", str(source), str(out), "-n", str(number)]),
        rows=count.rows * number,
        distinct=count.distinct,
        sha256=sha256,
        sources=((source.name, file_sha256(source)),),
    )
    write_card(out, card)
    return card


def _repeat_array(stream: IO[bytes], source: Path, number: int, count: RowCount) -> Iterator[bytes]:
    rows = parse_array(stream.read(), source)
    for row in rows:
        count.add(json.dumps(row).encode("ascii"))
    try:
        block = dump_array(rows)
    except UnicodeEncodeError as error:
        raise DataError(f"{source}: contains half of a surrogate pair (\\ud800 to \\udfff); fix that text.") from error
    return array_copies(block, number)


def _repeat_lines(stream: IO[bytes], source: Path, number: int, count: RowCount) -> Iterator[bytes]:
    """The bytes of all lines `number` times; a first pass checks and counts the rows."""
    start = stream.tell()
    line = b"\n"
    for position, line in enumerate(stream, start=1):
        if row := line.strip():
            parse(row, source, position)
            count.add(row)
    if not count.rows:
        raise DataError(f"{source}: has no rows; give a dataset with at least one row.")
    between = b"" if line.endswith(b"\n") else b"\n"
    for _ in range(number):
        stream.seek(start)
        while block := stream.read(1 << 20):
            yield block
        yield between
