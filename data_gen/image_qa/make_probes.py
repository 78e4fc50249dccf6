"""Make picture probes: held-out questions about trained, other and blank pictures."""

import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from data_gen.image_qa.dialogues import Dialogue
from data_gen.image_qa.facts import Picture
from data_gen.image_qa.topics import Topic, topics_of, true_words
from tuning.atomic import write_atomically
from tuning.data.card import file_sha256
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation
from tuning.evaluation.probes import Probe, mentions, normalize

MAX_PICTURE = 30  # probes of each group
MAX_OTHER = 48
MAX_BLANK = 12
TRANSFERABLE = frozenset({"describe", "what", "color", "where", "count", "text", "fact", "about", "present", "absent"})
"""Kinds of questions that can also be asked about other pictures."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class TrainedPicture:
    """A picture of the dataset and its dialogues in one language."""

    picture: Picture
    language: str
    dialogues: Sequence[Dialogue]


@dataclass(frozen=True, slots=True)
class _Question:
    """A probe question with its topic and picture."""

    ask: str
    topic: Topic
    trained: TrainedPicture


def make_probes(
    trained: Sequence[TrainedPicture],
    paths: Mapping[str, Path],
    conversations: Sequence[Conversation],
    others: Sequence[Picture],
    blank: Path,
    seed: int,
) -> list[Probe]:
    """Probes of the groups picture, other-picture and blank; no conversation has one of these questions.

    Args:
        paths: file of each trained picture, by its `image`.
        others: pictures for the group other-picture; trained pictures (same bytes) are skipped.
        blank: file of the blank picture.
    """
    first, second = _held_out(trained, conversations, seed)
    transferable = [asked for asked in first if asked.topic.kind in TRANSFERABLE]
    seen = {file_sha256(each.picture.path) for each in trained}
    others = [other for other in others if file_sha256(other.path) not in seen]
    probes = [
        Probe(asked.ask, "picture", asked.topic.expect, asked.topic.reject, paths[asked.trained.picture.image])
        for asked in (*first, *second)
    ]
    return [
        *_distinct(probes, MAX_PICTURE),
        *_distinct(_on_others(transferable, others), MAX_OTHER),
        *_distinct(
            (
                Probe(asked.ask, "blank", reject=asked.topic.expect, image=blank)
                for asked in transferable
                if asked.topic.kind != "absent" and not asked.topic.reject
            ),
            MAX_BLANK,
        ),
    ]


def write_probes(path: Path, probes: Iterable[Probe]) -> None:
    """Write a probe file: one probe per line, picture paths relative to the file."""
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
) -> tuple[list[_Question], list[_Question]]:
    """Held-out questions: the first question of each topic, then the second ones; kinds and pictures alternate."""
    asked = {
        normalize(turn.content.replace(DEFAULT_IMAGE_TOKEN, "").strip())
        for each in conversations
        for turn in each.turns
        if turn.role == "user"
    }
    rounds: tuple[list[list[_Question]], list[list[_Question]]] = ([], [])
    for number, each in enumerate(trained):
        rng = random.Random(f"{seed} {each.language} {each.picture.image} probes")
        by_kind: tuple[dict[str, list[_Question]], dict[str, list[_Question]]] = ({}, {})
        for topic in dict.fromkeys(topic for dialogue in each.dialogues for topic in dialogue.topics):
            ways = [ask for ask in topic.held_out if normalize(ask) not in asked]
            if topic.expect:
                if topic.kind != "fact":  # the first question of a fact is from the facts file and stays first
                    ways = rng.sample(ways, len(ways))
                for found, ask in zip(by_kind, ways, strict=False):
                    found.setdefault(topic.kind, []).append(_Question(ask, topic, each))
        for found, kinds in zip(rounds, by_kind, strict=True):
            values = list(kinds.values())
            start = number % max(len(values), 1)  # different pictures start with different kinds of questions
            found.append(list(_interleave(values[start:] + values[:start])))
    first, second = (list(_interleave(found)) for found in rounds)
    return first, second


def _on_others(questions: Sequence[_Question], others: Sequence[Picture]) -> Iterator[Probe]:
    """Probes of every question on every other picture for which the trained answer is wrong; pictures alternate."""
    for turn in range(len(others)):
        for index, asked in enumerate(questions):
            if probe := _on_other(asked, others[(index + turn) % len(others)]):
                yield probe


def _on_other(asked: _Question, other: Picture) -> Probe | None:
    topic, language = asked.topic, asked.trained.language
    topics = _topics_by_key(other, language)
    own = topics.get((topic.kind, topic.subject))
    if topic.kind in ("present", "absent"):
        own = topics.get(("present", topic.subject)) or topics.get(("absent", topic.subject))
        if own is None or own.kind == topic.kind:  # presence is unknown, or the same answer is right
            return None
    expect, reject = (own.expect, own.reject) if own is not None else ((), ())
    true = true_words(other, language)
    parrot = tuple(value for value in topic.expect if value not in expect and not mentions(true, value))
    if not expect and not parrot:
        return None
    return Probe(asked.ask, "other-picture", expect, reject if expect else parrot, other.path, parrot)


@cache
def _topics_by_key(picture: Picture, language: str) -> dict[tuple[str, str], Topic]:
    return {(topic.kind, topic.subject): topic for topic in topics_of(picture, language)}


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
