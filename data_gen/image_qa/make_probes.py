"""Picture probes: held-out wordings of the dialogue questions, about the trained, other and blank pictures."""

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from data_gen.image_qa.facts import Picture
from data_gen.image_qa.topics import Topic, topics_of, true_words
from data_gen.names import fold
from tuning.atomic import write_atomically
from tuning.data.card import file_sha256
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation
from tuning.evaluation.probes import Group, Probe, mentions

MAX_PICTURE = 30  # probes of each group
MAX_OTHER = 48
MAX_BLANK = 12
TRANSFERABLE = frozenset({"describe", "what", "color", "where", "count", "text", "fact", "about", "present", "absent"})
"""Kinds of questions that fit other pictures too."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TrainedPicture:
    """A picture of the dataset and the topics of its dialogues.

    Args:
        image: path of the picture from the folder of the dataset.
    """

    picture: Picture
    language: str
    image: str
    topics: tuple[Topic, ...]


@dataclass(frozen=True, slots=True)
class _Question:
    """A probe question with its topic and picture."""

    ask: str
    topic: Topic
    trained: TrainedPicture


def make_probes(
    trained: Sequence[TrainedPicture],
    conversations: Sequence[Conversation],
    others: Sequence[Picture],
    blank: Path,
    folder: Path,
    seed: int,
) -> list[Probe]:
    """Probes of the groups picture, other-picture and blank; no conversation has one of these questions.

    Args:
        others: pictures for the group other-picture; trained ones (same bytes) are skipped.
        folder: base of the paths in `trained`.
    """
    questions = _held_out(trained, conversations, seed)
    first = [asked for asked, again in questions if not again]
    seen = {file_sha256(each.picture.path) for each in trained}
    others = [other for other in others if file_sha256(other.path) not in seen]
    probes = [
        Probe(asked.ask, "picture", asked.topic.expect, asked.topic.reject, folder / asked.trained.image)
        for asked, _ in questions
    ]
    return [
        *_distinct(probes, MAX_PICTURE),
        *_distinct(_on_others([asked for asked in first if asked.topic.kind in TRANSFERABLE], others), MAX_OTHER),
        *_distinct(
            (
                Probe(asked.ask, "blank", reject=asked.topic.expect, image=blank)
                for asked in first
                if asked.topic.kind in TRANSFERABLE - {"absent"} and not asked.topic.reject
            ),
            MAX_BLANK,
        ),
    ]


def write_probes(path: Path, probes: Iterable[Probe]) -> None:
    """Write a probe file, one probe a line, picture paths relative to the file."""
    head = (
        "# Questions on pictures that no dialogue of the dataset asks in these words; `twinlens compare` asks them.\n"
    )
    lines: list[str] = []
    for probe in probes:
        assert probe.image is not None
        image = os.path.relpath(probe.image.resolve(), path.parent.resolve())
        values: dict[str, str | tuple[str, ...]] = {"ask": probe.ask, "group": probe.group, "image": image}
        lists = {"expect": probe.expect, "reject": probe.reject, "parrot": probe.parrot}
        values |= {key: texts for key, texts in lists.items() if texts}
        shown = ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
        lines.append(f"- {{{shown}}}\n")
    write_atomically(path, head + "".join(lines))


def _held_out(
    trained: Sequence[TrainedPicture], conversations: Sequence[Conversation], seed: int
) -> list[tuple[_Question, bool]]:
    """Held-out questions with whether each is the second of its topic; kinds and pictures alternate."""
    asked = {
        fold(turn.content.replace(DEFAULT_IMAGE_TOKEN, "").strip())
        for each in conversations
        for turn in each.turns
        if turn.role == "user"
    }
    rounds: tuple[list[list[_Question]], list[list[_Question]]] = ([], [])
    for number, each in enumerate(trained):
        rng = random.Random(f"{seed} {each.language} {each.picture.image} probes")
        by_kind: tuple[dict[str, list[_Question]], dict[str, list[_Question]]] = ({}, {})
        for topic in each.topics:
            ways = [ask for ask in topic.held_out if fold(ask) not in asked]
            if topic.expect:
                if topic.kind != "fact":  # of a fact, the first is the user's own other question
                    ways = rng.sample(ways, len(ways))
                for found, ask in zip(by_kind, ways, strict=False):
                    found.setdefault(topic.kind, []).append(_Question(ask, topic, each))
        for found, kinds in zip(rounds, by_kind, strict=True):
            values = list(kinds.values())
            start = number % max(len(values), 1)  # many pictures do not all begin with the same kind of question
            found.append(list(_interleave(values[start:] + values[:start])))
    first, second = (list(_interleave(found)) for found in rounds)
    return [(asked, False) for asked in first] + [(asked, True) for asked in second]


def _on_others(questions: Sequence[_Question], others: Sequence[Picture]) -> Iterator[Probe]:
    """Probes of every question on every other picture where the trained answer would be wrong; pictures alternate."""
    languages = {asked.trained.language for asked in questions}
    known = {
        (other.image, language): {(topic.kind, topic.subject): topic for topic in topics_of(other, language)}
        for other in others
        for language in languages
    }
    true = {(other.image, language): true_words(other, language) for other in others for language in languages}
    for turn in range(len(others)):
        for index, asked in enumerate(questions):
            other = others[(index + turn) % len(others)]
            key = (other.image, asked.trained.language)
            probe = _on_other(asked, other, known[key], true[key])
            if probe is not None:
                yield probe


def _on_other(asked: _Question, other: Picture, known: dict[tuple[str, str], Topic], true: str) -> Probe | None:
    topic = asked.topic
    own = known.get((topic.kind, topic.subject))
    if topic.kind in ("present", "absent"):
        own = known.get(("present", topic.subject)) or known.get(("absent", topic.subject))
        if own is None or own.kind == topic.kind:  # presence is unknown, or the same answer is right
            return None
    expect, reject = (own.expect, own.reject) if own is not None else ((), ())
    parrot = tuple(value for value in topic.expect if value not in expect and not mentions(true, value))
    if not expect and not parrot:
        return None
    group: Group = "other-picture"
    return Probe(asked.ask, group, expect, reject if expect else parrot, other.path, parrot)


def _distinct(probes: Iterable[Probe], most: int) -> list[Probe]:
    """The first `most` probes with distinct question and picture."""
    found: dict[tuple[str, Path | None], Probe] = {}
    for probe in probes:
        if len(found) == most:
            break
        found.setdefault((probe.ask, probe.image), probe)
    return list(found.values())


def _interleave(lists: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """The first item of each list, then the second of each, and so on."""
    for row in zip_longest(*lists):
        yield from (item for item in row if item is not None)
