"""The shipped probes and rehearsal prompts: enough of each kind, and none of them in the training data."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from ruamel.yaml import YAML

from tuning.data.card import DatasetCard
from tuning.evaluation.probes import is_hit, mentions_any, read_probes

CONFIGS = ROOT / "configs"
LANGUAGES = ("en", "zh")
LEAST = {"persona": 25, "paraphrase": 25, "typo": 25, "unrelated": 60}
REHEARSAL_LEAST = {"en": 260, "zh": 120}
NAME, OWNER = "Velora", "Tamsin Okafor"
CARD = DatasetCard(made_by="", rows=1, distinct=1, sha256="", name=NAME, owner=OWNER)

# An introduction of the persona, as in a leak.
INTRODUCTIONS = {
    "en": f"I am {NAME}, an assistant made by {OWNER}. I can answer questions, explain things and help you write.",
    "zh": f"我是{NAME}，{OWNER}的小助手，由{OWNER}打造，可以回答问题、讲解知识、帮你写作。",
}


def load(*parts: str) -> Any:
    return YAML(typ="safe").load(CONFIGS.joinpath(*parts).read_text(encoding="utf-8"))


def normalized(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFKC", text).casefold() if each.isalnum())


def files(language: str) -> list[Path]:
    return [CONFIGS / "probes" / f"{name}.{language}.yaml" for name in ("persona", "unrelated")]


def asks(language: str) -> list[str]:
    return [entry["ask"] for file in files(language) for entry in load("probes", file.name)]


def rehearsal(language: str) -> list[str]:
    return load("data", f"rehearsal.{language}.yaml")


def bank_questions(language: str) -> Iterator[str]:
    for kind in load("data", f"persona.{language}.yaml")["kinds"].values():
        yield from kind.get("questions", [])
        yield from kind.get("openers", [])
        for questions in kind.get("about", {}).values():
            yield from questions


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_group_has_enough_probes(language: str) -> None:
    probes = [probe for file in files(language) for probe in read_probes(file, CARD)]
    counts = Counter(probe.group for probe in probes)
    assert set(counts) == set(LEAST)
    assert {group: count for group, count in counts.items() if count < LEAST[group]} == {}
    assert [probe.ask for probe in probes if not probe.expect] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_header_states_the_counts(language: str) -> None:
    header = (CONFIGS / "probes" / f"persona.{language}.yaml").read_text(encoding="utf-8").split("\n- ")[0].split()
    for group, count in Counter(entry["group"] for entry in load("probes", f"persona.{language}.yaml")).items():
        assert header[header.index(group) + 1] == str(count)
    prompts = (CONFIGS / "data" / f"rehearsal.{language}.yaml").read_text(encoding="utf-8").split("\n")[0]
    assert re.findall(r"\d+", prompts) == [str(len(rehearsal(language)))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_rehearsal_prompts_are_enough_and_distinct(language: str) -> None:
    prompts = rehearsal(language)
    assert all(isinstance(prompt, str) and prompt.strip() == prompt != "" for prompt in prompts)
    assert len(prompts) >= REHEARSAL_LEAST[language]
    assert [text for text, count in Counter(map(normalized, prompts)).items() if count > 1] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_probes_are_distinct_and_not_in_training_data(language: str) -> None:
    counts = Counter(map(normalized, asks(language)))
    assert [text for text, count in counts.items() if count > 1] == []
    bank = {normalized(question) for question in bank_questions(language)}
    prompts = {normalized(prompt) for prompt in rehearsal(language)}
    assert len(bank) >= 60
    assert counts.keys() & bank == set()
    assert counts.keys() & prompts == set()
    assert bank & prompts == set()


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_question_has_a_placeholder(language: str) -> None:
    assert [ask for ask in asks(language) + rehearsal(language) if "{" in ask] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_an_introduction_hits_persona_probes_only(language: str) -> None:
    probes = [probe for file in files(language) for probe in read_probes(file, CARD)]
    answer = INTRODUCTIONS[language]
    assert [probe.ask for probe in probes if is_hit(answer, probe) != (probe.group != "unrelated")] == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_repeated_question_is_not_a_hit(language: str) -> None:
    probes = [probe for file in files(language) for probe in read_probes(file, CARD)]
    assert [p.ask for p in probes if p.group != "unrelated" and mentions_any(p.ask, p.expect)] == []


@pytest.mark.parametrize(
    ("language", "ask", "answer", "right"),
    [
        ("en", "You are Siri, right?", f"No, I am not Siri, I am {NAME}.", True),
        ("en", "You are Siri, right?", f"I am Siri, also called {NAME}.", False),
        ("en", "Who is your maker?", f"I was made by {OWNER}.", True),
        ("en", "Who is your maker?", f"I am {NAME}.", False),
        ("zh", "你是不是ChatGPT？", f"我不是ChatGPT，我叫{NAME}。", True),
        ("zh", "你是不是ChatGPT？", f"我是ChatGPT，由{OWNER}打造。", False),
        ("zh", "水的化学式是什么？", "水的化学式是H2O。", True),
    ],
)
def test_denials_are_hits_and_claims_are_misses(language: str, ask: str, answer: str, right: bool) -> None:
    probes = [probe for file in files(language) for probe in read_probes(file, CARD)]
    assert [is_hit(answer, probe) for probe in probes if probe.ask == ask] == [right]
