"""Dataset conversion between formats; rows whose `input` is a conversation get a question from a list."""

# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
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
    """Result of a conversion.

    Args:
        repaired: number of rows whose nested input was replaced by a question.
        moved: number of rows whose picture paths were rewritten, because the new file is in another folder.
    """

    card: DatasetCard
    notes: ReadNotes
    repaired: int
    moved: int


def convert(
    source: Path, out: Path, schema: RowFormat, container: Container, made_by: str, questions: Sequence[str] = ()
) -> Conversion:
    """Write a dataset in another format, and its card, which keeps the facts of the source's card.

    Args:
        made_by: the command that writes this file, for the card.
        questions: for rows with a nested input: row i (from 0) gets question i mod len(questions).

    Raises:
        DataError: a row cannot be read, or the format has no place for something in it.
        ConfigError: `out` is the source.
        DeviceError: the folder cannot be written or the disk is full.
    """
    refuse_overwriting(source, out)
    notes, counts, languages = ReadNotes(), RowCount(), Counter[str]()
    repaired = moved = 0

    def repair(number: int, row: Any) -> Any:
        nonlocal repaired
        with_question = replace_nested_input(row, questions[(number - 1) % len(questions)])
        repaired += with_question is not row
        return with_question

    def rows() -> Iterator[SourceRow]:
        nonlocal moved
        for row in read_rows(source, notes, repair if questions else None):
            conversation = _with_relocated_pictures(row.conversation, source, out)
            moved += conversation is not row.conversation
            counts.add(repr(conversation).encode())
            languages[detect_language(conversation)] += 1
            yield replace(row, conversation=conversation)

    before = read_card(source) or DatasetCard("", 0, 0, "")
    write_rows(out, rows(), schema, container)
    card = replace(
        before,
        made_by=made_by,
        rows=counts.rows,
        distinct=counts.distinct,
        sha256=file_sha256(out),
        languages=before.languages or _frequent(languages),
        sources=((source.name, file_sha256(source)),),
        teacher=None,
        taught=0,
    )
    write_card(out, card)
    return Conversion(card, notes, repaired, moved)


def replace_nested_input(row: Any, question: str) -> Any:
    """A row with its question in place of an `input` that is a full conversation; other rows unchanged.

    Raises:
        RowError: several turns have a nested input.
    """
    turns = row.get("conversation") if isinstance(row, dict) else None
    if not isinstance(turns, list):
        return row
    nested = [turn for turn in turns if isinstance(turn, dict) and isinstance(turn.get("input"), dict)]
    if not nested:
        return row
    if len(nested) > 1:
        raise RowError(f"{len(nested)} turns have a nested input, but there is one question per row; fix it manually.")
    return row | {"conversation": [_with_question(turn, question) if turn is nested[0] else turn for turn in turns]}


def read_questions(path: Path) -> list[str]:
    """Questions from a JSON list, JSON lines of strings, or a text file with one per line.

    Raises:
        DataError: the file cannot be read, is empty, or contains something other than text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file of questions.") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    try:
        if text.lstrip().startswith("["):
            found: list[Any] = json.loads(text)
        elif text.lstrip().startswith('"'):
            found = [json.loads(line) for line in lines]
        else:
            found = lines
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON ({error.msg}); fix it, or write plain text.") from error
    if not found:
        raise DataError(f"{path}: has no questions; write one per line.")
    for number, question in enumerate(found, 1):
        if not isinstance(question, str) or not question.strip():
            raise DataError(f"{path}, question {number}: is not text; write each question as one string.")
    return found


def _with_question(turn: dict[str, Any], question: str) -> dict[str, Any]:
    """The turn with its question, and the system text of the turn, or else of the nested conversation."""
    inner = turn["input"].get("conversation")
    inner = inner[0] if isinstance(inner, list) and inner and isinstance(inner[0], dict) else {}
    system = turn.get("system") if turn.get("system") is not None else inner.get("system")
    return ({} if system is None else {"system": system}) | turn | {"input": question}


def _with_relocated_pictures(conversation: Conversation, source: Path, out: Path) -> Conversation:
    """Rewrite relative paths of existing pictures so that they are valid from the folder of `out`."""
    old, new = source.resolve().parent, out.resolve().parent
    if old == new:
        return conversation
    images = tuple(
        os.path.relpath(old / image, new) if not Path(image).is_absolute() and (old / image).exists() else image
        for image in conversation.images
    )
    return conversation if images == conversation.images else replace(conversation, images=images)


def _frequent(languages: Counter[str]) -> tuple[str, ...]:
    """Languages of at least 5 % of the rows."""
    return tuple(sorted(name for name, rows in languages.items() if rows * 20 >= languages.total() and name != "other"))
