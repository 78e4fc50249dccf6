"""What a teacher's answer must be to become a dialogue: JSON of questions and answers, whole, clean and new."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, cast

from data_gen.names import CONTROL, fold

LONGEST_QUESTION, LONGEST_ANSWER = 300, 1500  # characters
LONGEST_TEXT = 60_000
# Marks of pictures and of chat templates: as text in a row they would open a turn or ask for a picture.
MARKUP = re.compile(
    r"<image>|<\|[^|<>]*\|>|<\uff5c|</?s>|</?think>|<</?SYS>>|\[/?INST\]|\[UNUSED_TOKEN"
    r"|<(?:start|end)_of_turn>|<(?:so|eo)[hsaub]>|^\s*#{0,3} ?(?:human|user|assistant) ?:",
    re.IGNORECASE | re.MULTILINE,
)

Rounds = tuple[tuple[str, str], ...]


class Unusable(Exception):
    """Says what is wrong with an answer, in words that the teacher is told."""


def read_rounds(text: str, number: int, taken: Collection[str] = ()) -> Rounds:
    """The rounds of question and answer in a teacher's text, which may stand in a code fence or between other words.

    Args:
        text: with `{"rounds": [{"question": ..., "answer": ...}]}`, or the list alone; the last such JSON counts.
        number: exactly so many rounds.
        taken: questions, as `same_question` folds them, that belong elsewhere.

    Raises:
        Unusable: there is no such JSON, or a round is not what it must be.
    """
    if len(text) > LONGEST_TEXT:
        raise Unusable(f"the answer is longer than {LONGEST_TEXT} characters")
    found = [rounds for value in _json_values(text) if (rounds := _list_of_rounds(value)) is not None]
    if not found:
        raise Unusable('there is no complete JSON of the form {"rounds": [{"question": "...", "answer": "..."}]}')
    rounds = found[-1]
    if len(rounds) != number:
        raise Unusable(f"there are {len(rounds)} rounds and not {number}")
    return check_rounds(rounds, taken)


def check_rounds(rounds: list[Any], taken: Collection[str] = ()) -> Rounds:
    """The same rounds, typed and stripped.

    Raises:
        Unusable: a text is missing, empty, too long, carries markup, or a question is repeated or taken.
    """
    checked: list[tuple[str, str]] = []
    seen: set[str] = set()
    for place, entry in enumerate(rounds, start=1):
        if not isinstance(entry, dict):
            raise Unusable(f"round {place} is no object with question and answer")
        pair = cast(dict[str, Any], entry)
        question = _text(pair.get("question"), f"question {place}", LONGEST_QUESTION)
        answer = _text(pair.get("answer"), f"answer {place}", LONGEST_ANSWER)
        folded = same_question(question)
        if folded in seen:
            raise Unusable(f"question {place} was asked before in the same conversation")
        if folded in taken:
            raise Unusable(f"question {place} ({question!r}) is already used elsewhere; ask something else")
        seen.add(folded)
        checked.append((question, answer))
    return tuple(checked)


def same_question(question: str) -> str:
    """One spelling for questions that differ in case, width, punctuation and spaces alone."""
    return "".join(letter for letter in fold(question) if letter.isalnum())


def _text(value: object, what: str, longest: int) -> str:
    if not isinstance(value, str):
        raise Unusable(f"{what} is missing or is no text")
    text = value.strip()
    if not any(letter.isalnum() for letter in text):
        raise Unusable(f"{what} says nothing")
    if len(text) > longest:
        raise Unusable(f"{what} is longer than {longest} characters")
    if CONTROL.search(text.replace("\n", " ")):
        raise Unusable(f"{what} holds control characters")
    if found := MARKUP.search(text):
        raise Unusable(f"{what} holds {found[0].strip()!r}, which belongs to chat markup")
    return text


def _list_of_rounds(value: object) -> list[Any] | None:
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("rounds")
    values = cast(list[Any], value) if isinstance(value, list) else []
    return values if any(isinstance(entry, dict) for entry in values) else None


def _json_values(text: str) -> Iterator[object]:
    """Every JSON object, and list of objects, that stands in a text, outermost ones, in order."""
    decoder = json.JSONDecoder()
    opening = re.compile(r'\{(?=\s*")|\[(?=\s*\{)')
    start = 0
    while found := opening.search(text, start):
        start = found.start() + 1
        try:
            value, start = decoder.raw_decode(text, found.start())
        except ValueError:  # no JSON begins here, but perhaps further on
            continue
        except RecursionError:  # thousands deep, and what is inside would be as well
            return
        yield value
