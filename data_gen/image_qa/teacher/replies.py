"""Parse teacher replies: find the JSON in the text, check its questions and answers."""

import json
import re
from collections.abc import Collection, Iterator
from typing import Any, cast

from data_gen.checks import CONTROL
from tuning.evaluation.probes import normalize

MAX_QUESTION, MAX_ANSWER = 300, 1500  # characters
MAX_REPLY = 60_000
# Image tokens and chat template markup: in the text of a row they would start a turn or require a picture.
MARKUP = re.compile(
    r"<image>|<\|[^|<>]*\|>|<\uff5c|</?s>|</?think>|<</?SYS>>|\[/?INST\]|\[UNUSED_TOKEN"
    r"|<(?:start|end)_of_turn>|<(?:so|eo)[hsaub]>|^\s*#{0,3} ?(?:human|user|assistant) ?:",
    re.IGNORECASE | re.MULTILINE,
)

Rounds = tuple[tuple[str, str], ...]


class InvalidReply(Exception):
    """A reply that cannot be used; the message goes into the next prompt."""


def parse_rounds(text: str, number: int, taken: Collection[str] = ()) -> Rounds:
    """The question-and-answer rounds in a teacher's reply; text and code fences around the JSON are ignored.

    Args:
        text: with `{"rounds": [{"question": ..., "answer": ...}]}`, or the list alone; the last such JSON counts.
        number: required number of rounds.
        taken: `question_key` of the questions that other dialogues use.

    Raises:
        InvalidReply: there is no such JSON, or a round is not valid.
    """
    if len(text) > MAX_REPLY:
        raise InvalidReply(f"the answer is longer than {MAX_REPLY} characters")
    candidates = [rounds for value in _json_values(text) if (rounds := _list_of_rounds(value)) is not None]
    if not candidates:
        raise InvalidReply('there is no complete JSON of the form {"rounds": [{"question": "...", "answer": "..."}]}')
    rounds = candidates[-1]
    if len(rounds) != number:
        raise InvalidReply(f"there are {len(rounds)} rounds and not {number}")
    return check_rounds(rounds, taken)


def check_rounds(rounds: list[Any], taken: Collection[str] = ()) -> Rounds:
    """The rounds as pairs of stripped strings.

    Raises:
        InvalidReply: a text is missing, empty, too long or contains markup, or a question is repeated or taken.
    """
    checked: list[tuple[str, str]] = []
    seen: set[str] = set()
    for number, entry in enumerate(rounds, start=1):
        if not isinstance(entry, dict):
            raise InvalidReply(f"round {number} is no object with question and answer")
        pair = cast(dict[str, Any], entry)
        question = _text(pair.get("question"), f"question {number}", MAX_QUESTION)
        answer = _text(pair.get("answer"), f"answer {number}", MAX_ANSWER)
        folded = question_key(question)
        if folded in seen:
            raise InvalidReply(f"question {number} was asked before in the same conversation")
        if folded in taken:
            raise InvalidReply(f"question {number} ({question!r}) is already used elsewhere; ask something else")
        seen.add(folded)
        checked.append((question, answer))
    return tuple(checked)


def question_key(question: str) -> str:
    """Key that is equal for questions that differ only in case, width, punctuation and spaces."""
    return "".join(letter for letter in normalize(question) if letter.isalnum())


def _text(value: object, what: str, longest: int) -> str:
    if not isinstance(value, str):
        raise InvalidReply(f"{what} is missing or is no text")
    text = value.strip()
    if not any(letter.isalnum() for letter in text):
        raise InvalidReply(f"{what} says nothing")
    if len(text) > longest:
        raise InvalidReply(f"{what} is longer than {longest} characters")
    if CONTROL.search(text.replace("\n", " ")):
        raise InvalidReply(f"{what} holds control characters")
    if found := MARKUP.search(text):
        raise InvalidReply(f"{what} holds {found[0].strip()!r}, which belongs to chat markup")
    return text


def _list_of_rounds(value: object) -> list[Any] | None:
    if isinstance(value, dict):
        value = cast(dict[str, Any], value).get("rounds")
    values = cast(list[Any], value) if isinstance(value, list) else []
    return values if any(isinstance(entry, dict) for entry in values) else None


def _json_values(text: str) -> Iterator[object]:
    """Every outermost JSON object or list of objects in a text, in order."""
    decoder = json.JSONDecoder()
    opening = re.compile(r'\{(?=\s*")|\[(?=\s*\{)')
    start = 0
    while found := opening.search(text, start):
        start = found.start() + 1
        try:
            value, start = decoder.raw_decode(text, found.start())
        except ValueError:  # no JSON begins here; search on
            continue
        except RecursionError:  # nested thousands deep; so are the inner values
            return
        yield value
