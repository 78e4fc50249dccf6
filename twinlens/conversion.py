"""From one dataset format to another, and the mending of files whose questions became nested rows."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_gen.container import RowCount, refuse_overwriting
from tuning.data.card import DatasetCard, file_sha256, read_card, write_card
from tuning.data.containers import Container, RowError
from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow, read_rows, write_rows
from tuning.data.row_readers import ReadNotes, RowFormat
from tuning.errors import DataError
from twinlens.inspection import detect_language


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a conversion did.

    Args:
        repaired: rows whose nested input gave way to its question.
        moved: rows whose picture paths were rewritten, because the new file lies in another folder.
    """

    card: DatasetCard
    notes: ReadNotes
    repaired: int
    moved: int


def convert(
    source: Path, out: Path, schema: RowFormat, container: Container, made_by: str, questions: Sequence[str] = ()
) -> Conversion:
    """Write a dataset in another format, with a card beside it that keeps what the source's card knew.

    Args:
        made_by: the command that makes the file again, for the card.
        questions: for rows whose input is nested: row i (from 0) belongs to question i mod len(questions).

    Raises:
        DataError: a row cannot be read, or the format cannot say what is in it.
        ConfigError: `out` is the source.
        DeviceError: the folder cannot be written or the disk is full.
    """
    refuse_overwriting(source, out)
    notes, counts, languages = ReadNotes(), RowCount(), Counter[str]()
    before = read_card(source)
    mended: list[int] = []
    moved = 0

    def rows() -> Iterator[SourceRow]:
        nonlocal moved
        for row in read_rows(source, notes, nested_input_repairer(questions, mended) if questions else None):
            conversation = _with_pictures_from(row.conversation, source, out)
            moved += conversation is not row.conversation
            counts.add(repr(conversation).encode())
            languages[detect_language(conversation)] += 1
            yield replace(row, conversation=conversation)

    write_rows(out, rows(), schema, container)
    card = DatasetCard(
        made_by=made_by,
        rows=counts.rows,
        distinct=counts.distinct,
        sha256=file_sha256(out),
        seed=before.seed if before else None,
        name=before.name if before else None,
        owner=before.owner if before else None,
        model=before.model if before else None,
        languages=before.languages if before and before.languages else _spoken(languages),
        markers=before.markers if before else (),
        sources=((source.name, file_sha256(source)),),
    )
    write_card(out, card)
    return Conversion(card, notes, len(mended), moved)


def nested_input_repairer(questions: Sequence[str], mended: list[int]) -> Callable[[int, Any], Any]:
    """Put the question back where a row's `input` is a whole conversation; row numbers go into `mended`."""

    def mend(number: int, row: Any) -> Any:
        turns = row.get("conversation") if isinstance(row, dict) else None
        if not isinstance(turns, list):
            return row
        nested = [turn for turn in turns if isinstance(turn, dict) and isinstance(turn.get("input"), dict)]
        if not nested:
            return row
        if len(nested) > 1:
            raise RowError(
                f"{len(nested)} turns have a nested input, and the list has one question a row; mend it by hand."
            )
        mended.append(number)
        question = questions[(number - 1) % len(questions)]
        return row | {"conversation": [_unnested(turn, question) if turn is nested[0] else turn for turn in turns]}

    return mend


def read_questions(path: Path) -> list[str]:
    """Questions from a JSON list, JSON lines of strings, or a text file with one a line.

    Raises:
        DataError: the file cannot be read, is empty, or holds something other than text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file of questions, one a line.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        if text.lstrip().startswith("["):
            found: list[Any] = json.loads(text)
        elif text.lstrip().startswith('"'):
            found = [json.loads(line) for line in lines]
        else:
            found = lines
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON ({error.msg}); fix it, or write one plain question a line.") from error
    if not found:
        raise DataError(f"{path}: has no questions; write one a line.")
    for number, question in enumerate(found, 1):
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{path}, question {number}: is not text; write each question as one string.")
    return found


def _unnested(turn: dict[str, Any], question: str) -> dict[str, Any]:
    """The turn with its question; the system text is the turn's own, or else the nested one."""
    inner = turn["input"].get("conversation")
    inner = inner[0] if isinstance(inner, list) and inner and isinstance(inner[0], dict) else {}
    system = turn.get("system") if turn.get("system") is not None else inner.get("system")
    return ({} if system is None else {"system": system}) | turn | {"input": question}


def _with_pictures_from(conversation: Conversation, source: Path, out: Path) -> Conversation:
    """Picture paths that lead somewhere from the source's folder, made to lead there from the new file's."""
    here, there = source.resolve().parent, out.resolve().parent
    if not conversation.images or here == there:
        return conversation
    images = tuple(
        os.path.relpath(here / image, there) if not Path(image).is_absolute() and (here / image).exists() else image
        for image in conversation.images
    )
    return conversation if images == conversation.images else replace(conversation, images=images)


def _spoken(languages: Counter[str]) -> tuple[str, ...]:
    """Languages of at least one row in twenty."""
    return tuple(sorted(name for name, rows in languages.items() if rows * 20 >= languages.total() and name != "other"))
