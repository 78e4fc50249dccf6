"""Gives the people of a dataset other names: in values, never in keys, and every other byte stays as it was."""

import dataclasses
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_gen.container import RowCount, is_array, parse, parse_array, refuse_overwriting, write_hashed
from data_gen.names import as_written, check_name, fold, spaced
from tuning.data.card import DatasetCard, file_sha256, read_card, write_card
from tuning.data.containers import open_dataset
from tuning.errors import ConfigError, DataError

# A JSON string, and the colon that makes it a key. Only valid JSON is searched, so quotes pair up from the left.
STRING = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?')


@dataclass(frozen=True, slots=True)
class Renaming:
    """All names at once, so that two can be swapped; the longest name that fits wins.

    Args:
        names: old to new.
        old: finds the old names as they are spelled.
        known: finds old and new names as they are spelled.
        variants: finds an old name in folded text, whatever its case, width and gaps.
        grown: finds a new name that contains an old one, and so would be renamed again by a second run.
    """

    names: Mapping[str, str]
    old: re.Pattern[str]
    known: re.Pattern[str]
    variants: re.Pattern[str]
    grown: re.Pattern[str] | None

    def apply(self, text: str) -> str:
        """The text under the new names."""
        return self.old.sub(lambda found: self.names[found[0]], text)


@dataclass(frozen=True, slots=True)
class Spelling:
    """A spelling of an old name that was left alone: how often it stands in the file, and in which line first."""

    count: int
    line: int


@dataclass(slots=True)
class Tally:
    """What one pass over a file found.

    Args:
        renamed: hits by old name.
        left: near misses by spelling.
    """

    renamed: Counter[str]
    changed: int = 0
    left: dict[str, Spelling] = field(default_factory=dict[str, Spelling])
    rows: RowCount = field(default_factory=RowCount)


def plan_renaming(pairs: Sequence[tuple[str, str]]) -> Renaming:
    """Check the pairs of old and new name and build the patterns.

    Raises:
        ConfigError: there are none, a name is empty, stays as it is, or is renamed twice.
    """
    if not pairs:
        raise ConfigError("--from: is missing; give --from OLD --to NEW, once for each name.")
    names: dict[str, str] = {}
    for old, new in pairs:
        check_name("--from", old)
        check_name("--to", new)
        if old == new:
            raise ConfigError(f"--from {old} --to {new}: old and new name are the same; leave the pair out.")
        if old in names:
            raise ConfigError(f"--from {old}: is given twice; one name can get only one other.")
        names[old] = new
    known = re.compile(_any_of(names, as_written))
    # A new name that is exactly another old one is a swap or a chain, and may stand in the file already.
    grown = [new for new in names.values() if known.search(new) and new not in names]
    return Renaming(
        names=names,
        old=known,
        known=re.compile(_any_of({*names, *names.values()}, as_written)),
        variants=re.compile(_any_of(names, spaced)),
        grown=re.compile(_any_of(grown, as_written)) if grown else None,
    )


def rename_dataset(source: Path, out: Path, pairs: Sequence[tuple[str, str]]) -> tuple[DatasetCard, Tally]:
    """Write `source` under other names, with a card beside it; lines stream, a JSON array is held in memory.

    Raises:
        ConfigError: the names are wrong, or `out` is the source.
        DataError: the source is not JSON, is empty, or was renamed so before.
        DeviceError: `out` cannot be written.
    """
    renaming = plan_renaming(pairs)
    refuse_overwriting(source, out)
    tally = Tally(renamed=Counter(dict.fromkeys(renaming.names, 0)))
    with open_dataset(source) as stream:
        card = read_card(source)
        _refuse_second_swap(source, card, renaming)
        rewrite = _rename_array if is_array(stream) else _rename_lines
        byte_order_mark = stream.tell()
        stream.seek(0)
        mark = stream.read(byte_order_mark)
        written = write_hashed(out, rewrite(stream, mark, source, renaming, tally))
    renamed = dataclasses.replace(
        _renamed_card(card, renaming, tally),
        made_by=shlex.join(["twinlens", "data", "rename", str(source), str(out), *_options(renaming.names)]),
        rows=tally.rows.rows,
        distinct=tally.rows.distinct,
        sha256=written,
        sources=((source.name, file_sha256(source)),),
    )
    write_card(out, renamed)
    return renamed, tally


def _rename_lines(stream: IO[bytes], mark: bytes, source: Path, renaming: Renaming, tally: Tally) -> Iterator[bytes]:
    yield mark
    for number, line in enumerate(stream, start=1):
        if line.strip():
            parse(line, source, number)
            renamed = _rename_json(line.decode("utf-8"), source, number, renaming, tally).encode("utf-8")
            tally.rows.add(renamed.strip())
            tally.changed += renamed != line
            yield renamed
        else:
            yield line
    if not tally.rows.rows:
        raise DataError(f"{source}: holds no rows; give a dataset with at least one.")


def _rename_array(stream: IO[bytes], mark: bytes, source: Path, renaming: Renaming, tally: Tally) -> Iterator[bytes]:
    text = stream.read()
    before = parse_array(text, source)
    renamed = _rename_json(text.decode("utf-8"), source, 1, renaming, tally).encode("utf-8")
    for old, new in zip(before, json.loads(renamed), strict=True):
        tally.rows.add(json.dumps(new).encode("ascii"))
        tally.changed += old != new
    yield mark + renamed


def _rename_json(text: str, source: Path, line: int, renaming: Renaming, tally: Tally) -> str:
    """Rename in the string values of valid JSON that begins at `line`; what has no hit stays byte for byte."""

    def string(found: re.Match[str]) -> str:
        literal, colon = found[1], found[2]
        if colon:
            return found[0]
        value: str = json.loads(literal)
        if renaming.grown and (grown := renaming.grown.search(value)):
            raise DataError(
                f"{source}, line {line + text.count(chr(10), 0, found.start())}: already says {grown[0]}, which "
                "contains an old name and would be renamed again; start from the file as it was before."
            )
        for spelling in _variants(value, renaming):
            first = Spelling(0, line + text.count("\n", 0, found.start()))
            seen = tally.left.get(spelling, first)
            tally.left[spelling] = Spelling(seen.count + 1, seen.line)
        hits = renaming.old.findall(value)
        if not hits:
            return literal
        tally.renamed.update(hits)
        return json.dumps(renaming.apply(value), ensure_ascii="\\u" in literal)  # escaped as its writer escaped

    return STRING.sub(string, text)


def _variants(value: str, renaming: Renaming) -> list[str]:
    """Old names in another spelling, as they stand in the value: other case or width, or gaps between characters."""
    rest = renaming.known.sub("\0", value)
    folded = renaming.variants.findall(fold(rest))
    if not folded:
        return []
    letters = [fold(letter) for letter in rest]
    origin = [position for position, letter in enumerate(letters) for _ in letter]
    found = [
        rest[origin[match.start()] : origin[match.end() - 1] + 1]
        for match in renaming.variants.finditer("".join(letters))
    ]
    return found or folded  # folding letter by letter misses the few that only compose together


def _renamed_card(card: DatasetCard | None, renaming: Renaming, tally: Tally) -> DatasetCard:
    if card is None:
        markers = tuple(new for old, new in renaming.names.items() if tally.renamed[old])
        return DatasetCard(made_by="", rows=0, distinct=0, sha256="", markers=markers)
    return dataclasses.replace(
        card,
        name=card.name and renaming.apply(card.name),
        owner=card.owner and renaming.apply(card.owner),
        model=card.model and renaming.apply(card.model),
        markers=tuple(renaming.apply(marker) for marker in card.markers),
    )


def _refuse_second_swap(source: Path, card: DatasetCard | None, renaming: Renaming) -> None:
    """A swap or chain leaves names that it would rename again; only the card tells that it was made already."""
    chained = any(new in renaming.names for new in renaming.names.values())
    if chained and card and card.made_by.endswith(" " + shlex.join(_options(renaming.names))):
        raise DataError(
            f"{source}: its card says that these names were swapped already; start from the file before that."
        )


def _options(names: Mapping[str, str]) -> list[str]:
    return [word for old, new in names.items() for word in ("--from", old, "--to", new)]


def _any_of(names: Iterable[str], form: Callable[[str], str]) -> str:
    return "|".join(form(name) for name in sorted(names, key=len, reverse=True))
