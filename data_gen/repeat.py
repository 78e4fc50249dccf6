"""The same rows many times over, for trainers that only know a file: `data.repeat` of a task does it without one."""

import dataclasses
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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
from tuning.errors import ConfigError, DataError


def repeat_dataset(source: Path, out: Path, number: int) -> DatasetCard:
    """Write all rows of `source` so many times over, in the same container, with a card beside them.

    A JSON array comes out as `json.dump(rows * number, ensure_ascii=False, indent=4)` writes it and is held in memory
    once; lines are copied as they are, in flat memory.

    Raises:
        ConfigError: `number` is below one, or `out` is the source.
        DataError: the source cannot be read, is empty, or is not JSON.
        DeviceError: `out` cannot be written.
    """
    if number < 1:
        raise ConfigError(f"-n {number}: give how many copies to write, 1 or more.")
    refuse_overwriting(source, out)
    count = RowCount()
    with open_dataset(source) as stream:
        card = read_card(source) or DatasetCard(made_by="", rows=0, distinct=0, sha256="")
        if is_array(stream):
            rows = parse_array(stream.read(), source)
            for row in rows:
                count.add(json.dumps(row).encode("ascii"))
            try:
                block = dump_array(rows)
            except UnicodeEncodeError as error:
                raise DataError(
                    f"{source}: holds half of a surrogate pair (\\ud800 to \\udfff); mend that text."
                ) from error
            sha256 = write_hashed(out, array_copies(block, number))
        else:
            ending = _count_lines(stream, source, count)
            sha256 = write_hashed(out, _line_copies(stream, number, ending))
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


def _count_lines(stream: IO[bytes], source: Path, count: RowCount) -> bytes:
    """Check and count every row; returns what must stand between two copies, and leaves the stream where it was."""
    start = stream.tell()
    line = b"\n"
    for number, line in enumerate(stream, start=1):
        if row := line.strip():
            parse(row, source, number)
            count.add(row)
    if not count.rows:
        raise DataError(f"{source}: holds no rows; give a dataset with at least one.")
    stream.seek(start)
    return b"" if line.endswith(b"\n") else b"\n"


def _line_copies(stream: IO[bytes], number: int, ending: bytes) -> Iterator[bytes]:
    start = stream.tell()
    for _ in range(number):
        stream.seek(start)
        while block := stream.read(1 << 20):
            yield block
        yield ending
