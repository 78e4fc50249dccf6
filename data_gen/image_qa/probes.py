"""Probes for pictures: the dialogues' questions in words that were never trained on, on this picture and on others."""

import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from data_gen.image_qa.facts import Picture
from data_gen.image_qa.topics import Topic, topics_of, true_of
from data_gen.names import fold
from tuning.atomic import write_atomically
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation
from tuning.data.pictures import picture_hash
from tuning.evaluation.probes import Group, Probe, mentions

PICTURE = 30  # probes of each group, at most
OTHER = 48
BLANK = 12
ELSEWHERE = frozenset({"describe", "what", "color", "where", "count", "text", "fact", "about", "present", "absent"})
"""Kinds that can be asked of another picture: the rest speak of what only the dialogue's own picture has."""

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Trained:
    """A picture that dialogues are about, and the topics that they asked.

    Args:
        place: the picture's path from the folder of the dataset.
    """

    picture: Picture
    language: str
    place: str
    topics: tuple[Topic, ...]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question of the probes, and what it is about."""

    ask: str
    topic: Topic
    trained: Trained


def make_probes(
    trained: Sequence[Trained],
    conversations: Sequence[Conversation],
    others: Sequence[Picture],
    blank: Path,
    folder: Path,
    seed: int,
) -> list[Probe]:
    """Probes of the groups picture, other-picture and blank; no question stands in any of the conversations.

    Args:
        others: pictures that are not trained on; those that are, by their bytes, are left out.
        folder: that pictures are relative to.
    """
    questions = _held_out(trained, conversations, seed)
    first = [asked for asked, again in questions if not again]
    seen = {picture_hash(each.picture.path) for each in trained}
    others = [other for other in others if picture_hash(other.path) not in seen]
    probes = [
        Probe(asked.ask, "picture", asked.topic.expect, asked.topic.reject, folder / asked.trained.place)
        for asked, _ in questions
    ]
    return [
        *_distinct(probes, PICTURE),
        *_distinct(_on_others([asked for asked in first if asked.topic.kind in ELSEWHERE], others), OTHER),
        *_distinct(
            (
                Probe(asked.ask, "blank", reject=asked.topic.expect, image=blank)
                for asked in first
                if asked.topic.kind in ELSEWHERE - {"absent"} and not asked.topic.reject
            ),
            BLANK,
        ),
    ]


def write_probes(path: Path, probes: Iterable[Probe]) -> None:
    """Write a probe file, pictures relative to it, a probe a line."""
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
    trained: Sequence[Trained], conversations: Sequence[Conversation], seed: int
) -> list[tuple[_Asked, bool]]:
    """Questions that were not trained on: one for each topic, kinds and pictures taking turns, and then second ones."""
    asked = {
        fold(turn.content.replace(DEFAULT_IMAGE_TOKEN, "").strip())
        for each in conversations
        for turn in each.turns
        if turn.role == "user"
    }
    rounds: tuple[list[list[_Asked]], list[list[_Asked]]] = ([], [])
    for number, each in enumerate(trained):
        draw = random.Random(f"{seed} {each.language} {each.picture.image} probes")
        by_kind: tuple[dict[str, list[_Asked]], dict[str, list[_Asked]]] = ({}, {})
        for topic in each.topics:
            ways = [ask for ask in topic.held_out if fold(ask) not in asked]
            if topic.expect:
                for found, ask in zip(by_kind, _preferred(topic, ways, draw), strict=False):
                    found.setdefault(topic.kind, []).append(_Asked(ask, topic, each))
        for found, kinds in zip(rounds, by_kind, strict=True):
            values = list(kinds.values())
            start = number % max(len(values), 1)  # many pictures do not all begin with the same kind of question
            found.append(list(_turns(values[start:] + values[:start])))
    first, second = (list(_turns(found)) for found in rounds)
    return [(asked, False) for asked in first] + [(asked, True) for asked in second]


def _preferred(topic: Topic, ways: list[str], draw: random.Random) -> list[str]:
    """In some order; a fact's own other question, which people wrote, comes first."""
    if topic.kind == "fact":
        return ways
    return draw.sample(ways, len(ways))


def _on_others(questions: Sequence[_Asked], others: Sequence[Picture]) -> Iterator[Probe]:
    """Every question on every other picture where it can tell looking from reciting, the pictures taking turns."""
    languages = {asked.trained.language for asked in questions}
    known = {
        (other.image, language): {(topic.kind, topic.subject): topic for topic in topics_of(other, language)}
        for other in others
        for language in languages
    }
    true = {(other.image, language): true_of(other, language) for other in others for language in languages}
    for turn in range(len(others)):
        for index, asked in enumerate(questions):
            other = others[(index + turn) % len(others)]
            key = (other.image, asked.trained.language)
            probe = _on_other(asked, other, known[key], true[key])
            if probe is not None:
                yield probe


def _on_other(asked: _Asked, other: Picture, known: dict[tuple[str, str], Topic], true: str) -> Probe | None:
    topic = asked.topic
    own = known.get((topic.kind, topic.subject))
    if topic.kind in ("present", "absent"):
        own = known.get(("present", topic.subject)) or known.get(("absent", topic.subject))
        if own is None or own.kind == topic.kind:  # not known whether it is there, or the same answer is right
            return None
    expect, reject = (own.expect, own.reject) if own is not None else ((), ())
    parrot = tuple(value for value in topic.expect if value not in expect and not mentions(true, value))
    if not expect and not parrot:
        return None
    group: Group = "other-picture"
    return Probe(asked.ask, group, expect, reject if expect else parrot, other.path, parrot)


def _distinct(probes: Iterable[Probe], most: int) -> list[Probe]:
    """The first so many that ask something else, or of another picture."""
    found: dict[tuple[str, Path | None], Probe] = {}
    for probe in probes:
        if len(found) == most:
            break
        found.setdefault((probe.ask, probe.image), probe)
    return list(found.values())


def _turns(lists: Sequence[Sequence[Item]]) -> Iterator[Item]:
    """One item of each list, then the next of each."""
    for row in zip_longest(*lists):
        yield from (item for item in row if item is not None)
