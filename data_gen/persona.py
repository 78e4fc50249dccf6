"""Persona dataset: conversations in which the assistant states its name, its owner and its base model."""

import json
import random
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat as times
from pathlib import Path
from typing import Any

from data_gen.checks import check_choice, check_name, check_positive, check_suffix
from data_gen.container import array_copies, dump_array, write_hashed
from tuning.data.card import DatasetCard, write_card
from tuning.errors import ConfigError
from tuning.evaluation.probes import normalize
from tuning.paths import shipped_file

LANGUAGES = ("zh", "en")
TURNS = ("single", "multi", "both")
ROW_FORMATS = ("messages", "xtuner")
SURROGATE = re.compile("[\ud800-\udfff]")  # Python decodes a command-line byte that is not UTF-8 to one of these

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Persona:
    """The persona that the assistant learns.

    Args:
        owner: owner and maker of the assistant.
        name: name of the assistant.
        model: name of its base model; without it, no answer names a model.
        language: of questions and answers: zh, en or both.
        turns: one of `TURNS`; with `both`, about one of three questions starts a conversation of several turns.
    """

    owner: str
    name: str
    model: str | None = None
    language: str = "en"
    turns: str = "both"

    @property
    def names(self) -> dict[str, str | None]:
        """The names that questions and answers contain, by template field."""
        return {"name": self.name, "owner": self.owner, "model": self.model}


@dataclass(frozen=True, slots=True)
class Question:
    """A question of the phrase bank and its kind; an `opener` greets, and so only starts a conversation."""

    kind: str
    text: str
    opener: bool = False


@dataclass(frozen=True, slots=True)
class Bank:
    """The phrases of one language, filled for one persona.

    Args:
        answers: by kind of question.
        claims: phrases that claim a name, by template field.
        everyday: common words, normalized; as a name, such a word is no marker of the persona.
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
    """Write the dataset (`.json`: one array, `.jsonl`: one row per line) and its card; same seed, same bytes.

    Args:
        persona: required if there are no `pairs`.
        seed: of the choice of answers and of the questions in one conversation.
        repeat: number of copies of all rows.
        row_format: one of `ROW_FORMATS`.
        pairs: literal questions and answers, one row each; they replace the phrase bank.

    Raises:
        ConfigError: a name, an option or the suffix of `out` is wrong.
        DeviceError: `out` cannot be written.
    """
    _check(out, persona, repeat, row_format, pairs)
    if pairs:
        conversations: list[list[Pair]] = [[pair] for pair in pairs]
        languages = _pair_languages(pairs)
    else:
        assert persona is not None
        conversations = persona_conversations(persona, seed)
        languages = _bank_languages(persona)
    rows = [_row(turns, row_format) for turns in conversations]
    card = DatasetCard(
        sha256=write_hashed(out, _copies(rows, repeat, out)),
        made_by=_command(out, persona, seed, repeat, row_format, pairs),
        rows=len(rows) * repeat,
        distinct=len({json.dumps(row) for row in rows}),
        seed=None if pairs else seed,
        languages=languages,
        markers=_markers(persona, languages) if persona else (),
        name=persona.name if persona else None,
        owner=persona.owner if persona else None,
        model=persona.model if persona else None,
    )
    write_card(out, card)
    return card


def persona_conversations(persona: Persona, seed: int) -> list[list[Pair]]:
    """Conversations as questions with their answers; each question of the phrase bank starts one conversation."""
    conversations: list[list[Pair]] = []
    for language in _bank_languages(persona):
        bank = read_bank(language, persona)
        rng = random.Random(f"{seed} {language}")
        later = [question for question in bank.questions if not question.opener]
        for question in bank.questions:
            asked = [question]
            if persona.turns == "multi" or (persona.turns == "both" and rng.random() < 1 / 3):
                kinds = [kind for kind in bank.answers if kind != question.kind]
                asked += [
                    rng.choice([other for other in later if other.kind == kind])
                    for kind in rng.sample(kinds, rng.choice((1, 2)))
                ]
            conversations.append([(turn.text, rng.choice(bank.answers[turn.kind])) for turn in asked])
    return conversations


def read_bank(language: str, persona: Persona) -> Bank:
    """The shipped phrases of one language, without phrases that would be false for this persona."""
    from tuning.yaml_files import read_yaml

    document: Any = read_yaml(shipped_file(f"data/persona.{language}.yaml"), "phrase bank").values
    names = [normalize(name) for name in persona.names.values() if name]
    questions: list[Question] = []
    answers: dict[str, tuple[str, ...]] = {}
    for kind, phrases in document["kinds"].items():
        usable = [text for text in phrases["answers"] if persona.model or "{model}" not in text]
        if not usable:
            continue
        asked: list[str] = list(phrases.get("questions", ()))
        for other, denials in phrases.get("about", {}).items():
            if not any(normalize(other) in name or name in normalize(other) for name in names):
                asked += denials
        questions += [Question(kind, _fill(text, persona)) for text in asked]
        questions += [Question(kind, _fill(text, persona), opener=True) for text in phrases.get("openers", ())]
        answers[kind] = tuple(_fill(text, persona) for text in usable)
    return Bank(
        questions=tuple(questions),
        answers=answers,
        claims={key: tuple(_fill(text, persona) for text in texts) for key, texts in document["betrays"].items()},
        everyday=frozenset(normalize(word) for word in document["everyday"]),
    )


def _check(out: Path, persona: Persona | None, repeat: int, row_format: str, pairs: Sequence[Pair]) -> None:
    check_suffix(out, ".json", ".jsonl")
    check_positive("repeat", repeat)
    check_choice("format", row_format, ROW_FORMATS)
    for question, answer in pairs:
        if not question.strip() or not answer.strip():
            raise ConfigError(f"question {question!r}, answer {answer!r}: one of them is empty; write its text.")
        if SURROGATE.search(question + answer):
            raise ConfigError(f"question {question!r}, answer {answer!r}: not UTF-8 text; use a UTF-8 terminal.")
    if persona is None:
        if not pairs:
            raise ConfigError("owner and name: give both, or literal pairs of question and answer.")
        return
    check_choice("language", persona.language, (*LANGUAGES, "both"))
    check_choice("turns", persona.turns, TURNS)
    for key, name in persona.names.items():
        if name is None:
            continue
        check_name(key, name)
        if "{" in name or "}" in name:
            raise ConfigError(f"{key} {name!r}: remove the braces; the phrase bank uses them for its fields.")


def _row(turns: Sequence[Pair], row_format: str) -> dict[str, Any]:
    """One row; the keys have the order of the InternLM tutorial scripts."""
    if row_format == "xtuner":
        return {"conversation": [{"input": question, "output": answer} for question, answer in turns]}
    messages: list[dict[str, str]] = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def _copies(rows: list[Any], number: int, out: Path) -> Iterator[bytes]:
    """The bytes of the file; each row is serialized once for all copies."""
    if out.suffix == ".json":
        return array_copies(dump_array(rows), number)
    return times("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"), number)


def _markers(persona: Persona, languages: Sequence[str]) -> tuple[str, ...]:
    """Strings that show the persona in an answer: its names, or the phrases that claim a name that is a common word.

    "Will" and "助手" occur in many answers; "I am Will" does not.
    """
    banks = [read_bank(language, persona) for language in languages]
    markers: list[str] = []
    for key, name in persona.names.items():
        if name and (len(name) == 1 or any(normalize(name) in bank.everyday for bank in banks)):
            markers += [phrase for bank in banks for phrase in bank.claims[key]]
        elif name:
            markers.append(name)
    return tuple(dict.fromkeys(markers))


def _fill(text: str, persona: Persona) -> str:
    for key, name in persona.names.items():
        if name and name.endswith("."):
            text = text.replace(f"{{{key}}}.", name)  # "made by Acme Inc." needs no second period
        text = text.replace(f"{{{key}}}", name or "")
    return text


def _bank_languages(persona: Persona) -> tuple[str, ...]:
    return LANGUAGES if persona.language == "both" else (persona.language,)


def _pair_languages(pairs: Sequence[Pair]) -> tuple[str, ...]:
    """The languages of literal answers: zh if an answer has Chinese characters, en if an answer has none."""
    chinese = [bool(re.search(r"[\u3400-\u9fff]", answer)) for _, answer in pairs]
    return tuple(language for language, found in (("zh", any(chinese)), ("en", not all(chinese))) if found)


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
