"""Conversations in which an assistant says who it is: from a bank of phrases, or one literal pair many times over."""

import json
import random
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat as times
from pathlib import Path
from typing import Any

from data_gen.container import array_copies, dump_array, write_hashed
from data_gen.names import check_name, fold
from tuning.data.card import DatasetCard, write_card
from tuning.errors import ConfigError
from tuning.paths import shipped_file

BANKS = ("zh", "en")
LANGUAGES = (*BANKS, "both")
TURNS = ("single", "multi", "both")
ROW_FORMATS = ("messages", "xtuner")
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # what a byte that is not UTF-8 becomes on the command line

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Persona:
    """Who the assistant is to be.

    Args:
        owner: whom it belongs to and who made it; `name`, what it is called.
        model: label of the model it says it is built on; answers that need one are left out without it.
        language: of questions and answers, one of `LANGUAGES`.
        turns: one of `TURNS`; with `both`, about every third question opens a longer conversation.
    """

    owner: str
    name: str
    model: str | None = None
    language: str = "en"
    turns: str = "both"


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the bank, its kind, and whether it greets and so can only begin a conversation."""

    kind: str
    text: str
    opener: bool = False


@dataclass(frozen=True, slots=True)
class Bank:
    """The phrases of one language, filled in for one persona.

    Args:
        answers: by kind of question.
        claims: for each name of the persona, the phrases that claim it.
        everyday: folded words that say nothing by themselves when they are somebody's name.
    """

    questions: tuple[Question, ...]
    answers: dict[str, tuple[str, ...]]
    claims: dict[str, tuple[str, ...]]
    everyday: frozenset[str]


def write_persona(
    out: Path,
    persona: Persona | None,
    *,
    seed: int = 0,
    repeat: int = 1,
    row_format: str = "messages",
    pairs: Sequence[Pair] = (),
) -> DatasetCard:
    """Write the dataset (`.json`: one array, `.jsonl`: a row a line) and its card; the same seed gives the same bytes.

    Args:
        out: the dataset.
        persona: who it speaks of; needed unless there are pairs.
        seed: of the answers' phrasing and of which questions meet in one conversation.
        repeat: exactly so many copies of all rows.
        row_format: one of `ROW_FORMATS`.
        pairs: literal questions and answers, a row each, that replace the bank.

    Raises:
        ConfigError: a name, a choice or the ending of `out` is wrong.
        DeviceError: `out` cannot be written.
    """
    _check(out, persona, repeat, row_format, pairs)
    if pairs:
        conversations: list[list[Pair]] = [[pair] for pair in pairs]
    else:
        assert persona is not None
        conversations = persona_conversations(persona, seed)
    rows = [_row(turns, row_format) for turns in conversations]
    sha256 = write_hashed(out, _copies(rows, repeat, out))
    languages = _languages(persona, pairs)
    card = DatasetCard(
        made_by=_command(out, persona, seed, repeat, row_format, pairs),
        rows=len(rows) * repeat,
        distinct=len({json.dumps(row) for row in rows}),
        sha256=sha256,
        seed=None if pairs else seed,
        name=persona.name if persona else None,
        owner=persona.owner if persona else None,
        model=persona.model if persona else None,
        languages=languages,
        markers=_markers(persona, languages) if persona else (),
    )
    write_card(out, card)
    return card


def persona_conversations(persona: Persona, seed: int) -> list[list[Pair]]:
    """Questions with their answers, turn by turn; each question of the bank opens one conversation."""
    conversations: list[list[Pair]] = []
    for language in _bank_languages(persona.language):
        bank = read_bank(language, persona)
        draw = random.Random(f"{seed} {language}")
        later = [question for question in bank.questions if not question.opener]
        for question in bank.questions:
            asked = [question]
            if persona.turns == "multi" or (persona.turns == "both" and draw.random() < 1 / 3):
                kinds = [kind for kind in bank.answers if kind != question.kind]
                asked += [
                    draw.choice([other for other in later if other.kind == kind])
                    for kind in draw.sample(kinds, draw.choice((1, 2)))
                ]
            conversations.append([(turn.text, draw.choice(bank.answers[turn.kind])) for turn in asked])
    return conversations


def read_bank(language: str, persona: Persona) -> Bank:
    """The shipped phrases of one language, without those that would be untrue of this persona."""
    from ruamel.yaml import YAML

    yaml: Any = YAML(typ="safe")
    document: dict[str, Any] = yaml.load(shipped_file(f"data/persona.{language}.yaml"))
    names = [fold(text) for text in (persona.name, persona.owner, persona.model) if text]
    questions: list[Question] = []
    answers: dict[str, tuple[str, ...]] = {}
    for kind, phrases in document["kinds"].items():
        usable = [text for text in phrases["answers"] if persona.model or "{model}" not in text]
        if not usable:
            continue
        asked: list[str] = list(phrases.get("questions", ()))
        for other, denials in phrases.get("about", {}).items():
            if not any(fold(other) in name or name in fold(other) for name in names):
                asked += denials
        questions += [Question(kind, _fill(text, persona)) for text in asked]
        questions += [Question(kind, _fill(text, persona), opener=True) for text in phrases.get("openers", ())]
        answers[kind] = tuple(_fill(text, persona) for text in usable)
    return Bank(
        questions=tuple(questions),
        answers=answers,
        claims={key: tuple(_fill(text, persona) for text in texts) for key, texts in document["betrays"].items()},
        everyday=frozenset(fold(word) for word in document["everyday"]),
    )


def _check(out: Path, persona: Persona | None, repeat: int, row_format: str, pairs: Sequence[Pair]) -> None:
    if out.suffix not in (".json", ".jsonl"):
        raise ConfigError(f"{out}: end OUT in .json (one array) or .jsonl (one row a line).")
    if repeat < 1:
        raise ConfigError(f"repeat {repeat}: give how many copies of each row to write, 1 or more.")
    if row_format not in ROW_FORMATS:
        raise ConfigError(f"format {row_format!r}: choose one of {', '.join(ROW_FORMATS)}.")
    for question, answer in pairs:
        if not question.strip() or not answer.strip():
            raise ConfigError(f"question {question!r}, answer {answer!r}: neither of the two may be empty.")
        if HALF_CHARACTER.search(question + answer):
            raise ConfigError(f"question {question!r}, answer {answer!r}: not UTF-8 text; type it in a UTF-8 terminal.")
    if persona is None:
        if not pairs:
            raise ConfigError("owner and name: give both, or literal pairs of question and answer.")
        return
    if persona.language not in LANGUAGES:
        raise ConfigError(f"language {persona.language!r}: choose one of {', '.join(LANGUAGES)}.")
    if persona.turns not in TURNS:
        raise ConfigError(f"turns {persona.turns!r}: choose one of {', '.join(TURNS)}.")
    for key, text in (("owner", persona.owner), ("name", persona.name), ("model", persona.model)):
        if text is None:
            continue
        check_name(key, text)
        if "{" in text or "}" in text:
            raise ConfigError(f"{key} {text!r}: take out the braces; the phrase bank marks its gaps with them.")


def _row(turns: Sequence[Pair], row_format: str) -> dict[str, Any]:
    """One row, with the keys in the order in which the tutorials' scripts write them."""
    if row_format == "xtuner":
        return {"conversation": [{"input": question, "output": answer} for question, answer in turns]}
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _copies(rows: list[Any], number: int, out: Path) -> Iterator[bytes]:
    """The file's bytes; the rows become text once, however many copies there are."""
    if out.suffix == ".json":
        return array_copies(dump_array(rows), number)
    return times("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"), number)


def _markers(persona: Persona, languages: Sequence[str]) -> tuple[str, ...]:
    """What betrays the persona: a name itself, or the phrases that claim it where the name is an everyday word.

    "Will" or "助手" turn up in any answer; "I am Will" does not.
    """
    banks = [read_bank(language, persona) for language in languages]
    everyday = frozenset[str]().union(*(bank.everyday for bank in banks))
    markers: list[str] = []
    for key, text in (("name", persona.name), ("owner", persona.owner), ("model", persona.model)):
        if text and (len(text) == 1 or fold(text) in everyday):
            markers += [phrase for bank in banks for phrase in bank.claims[key]]
        elif text:
            markers.append(text)
    return tuple(dict.fromkeys(markers))


def _fill(text: str, persona: Persona) -> str:
    for key, value in (("{name}", persona.name), ("{owner}", persona.owner), ("{model}", persona.model or "")):
        if value.endswith("."):
            text = text.replace(f"{key}.", value)  # "made by Acme Inc." ends the sentence by itself
        text = text.replace(key, value)
    return text


def _bank_languages(language: str) -> tuple[str, ...]:
    return BANKS if language == "both" else (language,)


def _languages(persona: Persona | None, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Of the rows: what was asked for, or for literal pairs the script of the answers."""
    if not pairs:
        return _bank_languages(persona.language) if persona else ()
    chinese = [bool(re.search(r"[\u3400-\u9fff]", answer)) for _, answer in pairs]
    return tuple(language for language, seen in (("zh", any(chinese)), ("en", not all(chinese))) if seen)


def _command(out: Path, persona: Persona | None, seed: int, repeat: int, row_format: str, pairs: Sequence[Pair]) -> str:
    command = ["twinlens", "data", "persona", str(out)]
    if persona:
        command += ["--owner", persona.owner, "--name", persona.name]
        command += ["--model", persona.model] if persona.model else []
        if not pairs:
            command += ["--language", persona.language, "--turns", persona.turns, "--seed", str(seed)]
    for question, answer in pairs:
        command += ["--question", question, "--answer", answer]
    return shlex.join([*command, "--repeat", str(repeat), "--format", row_format])
