"""Replace names of people in the values of a dataset, not in its keys; other bytes stay the same."""

import codecs
import dataclasses
import json
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_gen.checks import check_name
from data_gen.container import RowCount, is_array, parse, parse_array, refuse_overwriting, write_hashed
from tuning.data.card import DatasetCard, file_sha256, read_card, write_card
from tuning.data.containers import open_dataset
from tuning.errors import ConfigError, DataError
from tuning.evaluation.probes import IN_CJK, LETTER

# A JSON string, and the colon after it if it is a key. Only valid JSON is searched, so the quotes are in pairs.
STRING = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")(\s*:)?')
GAP = "[\\s\u200b-\u200d\ufeff]*"


@dataclass(frozen=True, slots=True)
class Renaming:
    """Patterns of all names; all names change at once, so two names can be swapped. The longest match wins.

    Args:
        names: new name by old name.
        old: matches the old names.
        known: matches the old and the new names.
        variants: in folded text, matches an old name with other case, other width, or gaps between its characters.
        grown: matches a new name that contains an old one; a second run would rename it again.
    """

    names: Mapping[str, str]
    old: re.Pattern[str]
    known: re.Pattern[str]
    variants: re.Pattern[str]
    grown: re.Pattern[str] | None

    def apply(self, text: str) -> str:
        """The text with the new names."""
        return self.old.sub(lambda found: self.names[found[0]], text)


@dataclass(slots=True)
class Spelling:
    """A spelling of an old name that was not replaced: its number of occurrences, and the line of the first."""

    count: int
    line: int


@dataclass(slots=True)
class Tally:
    """Counts of one pass over a file.

    Args:
        renamed: number of replacements by old name.
        changed: number of changed rows.
        left: other spellings of old names, which were not replaced.
    """

    renamed: Counter[str]
    changed: int = 0
    left: dict[str, Spelling] = field(default_factory=dict[str, Spelling])
    rows: RowCount = field(default_factory=RowCount)


def plan_renaming(pairs: Sequence[tuple[str, str]]) -> Renaming:
    """Check the pairs of old and new name, and compile the patterns.

    Raises:
        ConfigError: there is no pair, a name is empty, old and new name are equal, or an old name is given twice.
    """
    if not pairs:
        raise ConfigError("--from: is missing; give --from OLD --to NEW, once for each name.")
    names: dict[str, str] = {}
    for old, new in pairs:
        check_name("--from", old)
        check_name("--to", new)
        if old == new:
            raise ConfigError(f"--from {old} --to {new}: old and new name are the same; remove the pair.")
        if old in names:
            raise ConfigError(f"--from {old}: is given twice; give one new name for each old name.")
        names[old] = new
    known = re.compile(_any_of(names, _exact_pattern))
    # A new name that equals another old name is a swap or a chain, and may already be in the file.
    grown = [new for new in names.values() if known.search(new) and new not in names]
    return Renaming(
        names=names,
        old=known,
        known=re.compile(_any_of({*names, *names.values()}, _exact_pattern)),
        variants=re.compile(_any_of(names, _spaced_pattern)),
        grown=re.compile(_any_of(grown, _exact_pattern)) if grown else None,
    )


def rename_dataset(source: Path, out: Path, pairs: Sequence[tuple[str, str]]) -> tuple[DatasetCard, Tally]:
    """Write `source` with other names, and the card of `out`; JSON lines are streamed, a JSON array is in memory.

    Raises:
        ConfigError: the names are wrong, or `out` is the source.
        DataError: the source is not JSON, is empty, or already has the new names.
        DeviceError: `out` cannot be written.
    """
    renaming = plan_renaming(pairs)
    refuse_overwriting(source, out)
    options = [word for old, new in renaming.names.items() for word in ("--from", old, "--to", new)]
    tally = Tally(renamed=Counter(dict.fromkeys(renaming.names, 0)))
    with open_dataset(source) as stream:
        card = read_card(source)
        # A swap or a chain leaves names that a second run would rename again; only the card shows the first run.
        chained = any(new in renaming.names for new in renaming.names.values())
        if chained and card and card.made_by.endswith(f" {shlex.join(options)}"):
            raise DataError(
                f"{source}: its card says that these names were already swapped; use the file from before the swap."
            )
        rewrite = _rename_array if is_array(stream) else _rename_lines
        sha256 = write_hashed(out, rewrite(stream, source, renaming, tally))
    renamed = dataclasses.replace(
        _renamed_card(card, renaming, tally),
        made_by=shlex.join(["twinlens", "data", "rename", str(source), str(out), *options]),
        rows=tally.rows.rows,
        distinct=tally.rows.distinct,
        sha256=sha256,
        sources=((source.name, file_sha256(source)),),
    )
    write_card(out, renamed)
    return renamed, tally


def _rename_lines(stream: IO[bytes], source: Path, renaming: Renaming, tally: Tally) -> Iterator[bytes]:
    yield _byte_order_mark(stream)
    for number, line in enumerate(stream, start=1):
        renamed = line
        if line.strip():
            parse(line, source, number)
            renamed = _rename_json(line, source, number, renaming, tally)
            tally.rows.add(renamed.strip())
            tally.changed += renamed != line
        yield renamed
    if not tally.rows.rows:
        raise DataError(f"{source}: has no rows; give a dataset with at least one row.")


def _rename_array(stream: IO[bytes], source: Path, renaming: Renaming, tally: Tally) -> Iterator[bytes]:
    yield _byte_order_mark(stream)
    text = stream.read()
    before = parse_array(text, source)
    renamed = _rename_json(text, source, 1, renaming, tally)
    for old, new in zip(before, json.loads(renamed), strict=True):
        tally.rows.add(json.dumps(new).encode("ascii"))
        tally.changed += old != new
    yield renamed


def _byte_order_mark(stream: IO[bytes]) -> bytes:
    """The byte order mark that `open_dataset` skipped, if the file has one."""
    return codecs.BOM_UTF8 if stream.tell() else b""


def _rename_json(encoded: bytes, source: Path, line: int, renaming: Renaming, tally: Tally) -> bytes:
    """Rename in the string values of valid JSON that starts at `line`; all other bytes stay the same."""
    text = encoded.decode("utf-8")

    def rename_string(found: re.Match[str]) -> str:
        literal, colon = found[1], found[2]
        if colon:
            return found[0]
        value: str = json.loads(literal)
        position = line + text.count("\n", 0, found.start())
        if renaming.grown and (grown := renaming.grown.search(value)):
            raise DataError(
                f"{source}, line {position}: already contains {grown[0]}, which contains an old name and would be "
                "renamed again; use the file from before the first renaming."
            )
        for spelling in _variants(value, renaming):
            tally.left.setdefault(spelling, Spelling(0, position)).count += 1
        hits = renaming.old.findall(value)
        if not hits:
            return literal
        tally.renamed.update(hits)
        return json.dumps(renaming.apply(value), ensure_ascii="\\u" in literal)  # keeps the escape style of the file

    return STRING.sub(rename_string, text).encode("utf-8")


def _variants(value: str, renaming: Renaming) -> list[str]:
    """Other spellings of old names in the value: other case or width, or gaps between characters."""
    rest = renaming.known.sub("\0", value)
    folded = renaming.variants.findall(_fold(rest))
    if not folded:
        return []
    letters = [_fold(letter) for letter in rest]
    origin = [position for position, letter in enumerate(letters) for _ in letter]
    found = [
        rest[origin[match.start()] : origin[match.end() - 1] + 1]
        for match in renaming.variants.finditer("".join(letters))
    ]
    return found or folded  # folding single letters misses the few that only compose together


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


def _any_of(names: Iterable[str], pattern: Callable[[str], str]) -> str:
    """A pattern that matches any of the names, the longest first."""
    return "|".join(pattern(name) for name in sorted(names, key=len, reverse=True))


def _exact_pattern(name: str) -> str:
    """A pattern of the name exactly as it is spelled."""
    return _whole_words(name, re.escape(name))


def _spaced_pattern(name: str) -> str:
    """A pattern for folded text, which also matches the name with gaps between its characters."""
    name = "".join(_fold(name).split())
    return _whole_words(name, GAP.join(re.escape(character) for character in name))


def _whole_words(name: str, pattern: str) -> str:
    """The pattern with word boundaries; Chinese has no word boundaries, so there the pattern stays the same."""
    if IN_CJK.search(name):
        return pattern
    if re.match(LETTER, name[0]):
        pattern = f"(?<!{LETTER}){pattern}"
    if re.match(LETTER, name[-1]):
        pattern += f"(?!{LETTER}|[\u0300-\u036f])"  # a combining accent makes the last letter another letter
    return pattern


def _fold(text: str) -> str:
    """Text without differences of case and of full or half width."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
