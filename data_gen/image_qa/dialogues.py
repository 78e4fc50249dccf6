"""Dialogue planning: order topics with varied openings and follow-ups; every needed topic is asked."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_gen.image_qa.topics import Topic
from data_gen.names import fold
from tuning.errors import DataError

Pair = tuple[str, str]
SEEN = frozenset({"present", "color", "where", "count"})
REFERS_TO = {"color": SEEN, "where": SEEN, "count": SEEN, "seen": SEEN - {"present"}, "why": frozenset({"fact"})}
"""Kinds that a follow-up of each kind may follow, on the same subject."""
OPENERS = ("describe", "what", "color", "fact", "where", "text", "count", "present", "about", "absent", "trap")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Question-and-answer pairs and the topic of each."""

    pairs: tuple[Pair, ...]
    topics: tuple[Topic, ...]


@dataclass(slots=True)
class _Plan:
    """State over all dialogues about one picture: counts of topics, questions and opening kinds, free rounds."""

    topics: tuple[Topic, ...]
    location: str
    rng: random.Random
    slots: int
    topic_counts: Counter[Topic] = field(default_factory=Counter[Topic])
    question_counts: Counter[str] = field(default_factory=Counter[str])
    opener_counts: Counter[str] = field(default_factory=Counter[str])

    @property
    def due(self) -> list[Topic]:
        return [topic for topic in self.topics if topic.needed and not self.topic_counts[topic]]


def make_dialogues(
    topics: Sequence[Topic], number: int, rounds: int, rng: random.Random, location: str
) -> list[Dialogue]:
    """Dialogues of exactly `rounds` questions, no two of them equal in one dialogue; every needed topic is asked.

    Args:
        number: of dialogues.
        location: the picture's place, for messages.

    Raises:
        DataError: what is known does not fill a dialogue, or does not fit into all of them.
    """
    topics = _fitted([topic for topic in topics if topic.questions or topic.follow_ups], number * rounds, location)
    enough = len([topic for topic in topics if topic.questions])
    if enough < rounds:
        raise DataError(
            f"{location}: what is known of this picture answers {enough} different questions, and a dialogue of "
            f"{rounds} rounds asks {rounds}; add objects or facts, or give --rounds {enough}."
        )
    plan = _Plan(tuple(topics), location, rng, number * rounds)
    return [_dialogue(plan, rounds) for _ in range(number)]


def _fitted(topics: list[Topic], slots: int, location: str) -> list[Topic]:
    """Fewer topics that must be asked, where the dialogues have no room: what is absent, then a thing's details,
    which are kinds in one answer instead."""

    def due() -> int:
        return sum(topic.needed for topic in topics)

    if due() > slots:
        topics = [replace(topic, needed=topic.needed and topic.kind != "absent") for topic in topics]
    for subject in [topic.subject for topic in reversed(topics) if topic.kind == "about"]:
        if due() > slots:
            topics = [
                replace(topic, needed=topic.kind == "about")
                if topic.subject == subject and topic.kind in ("about", "color", "where", "count")
                else topic
                for topic in topics
            ]
    if due() > slots:
        raise DataError(
            f"{location}: the dialogues of this picture have room for {slots} questions, and what is known of it needs "
            f"{due()}; raise --dialogues or --rounds."
        )
    return topics


def _dialogue(plan: _Plan, rounds: int) -> Dialogue:
    pairs: list[Pair] = []
    topics: list[Topic] = []
    while len(pairs) < rounds:
        topic = _next(plan, topics, pairs)
        previous = topics[-1] if topics else None
        pairs.append(
            (_question(plan, topic, previous, pairs), topic.answers[plan.topic_counts[topic] % len(topic.answers)])
        )
        topics.append(topic)
        plan.topic_counts[topic] += 1
        plan.slots -= 1
    plan.opener_counts[topics[0].kind] += 1
    return Dialogue(tuple(pairs), tuple(topics))


def _next(plan: _Plan, topics: Sequence[Topic], pairs: Sequence[Pair]) -> Topic:
    """The topic with the lowest cost as the next one."""
    previous = topics[-1] if topics else None
    due = plan.due
    free = due if len(due) >= plan.slots else [topic for topic in plan.topics if topic not in topics]
    free = [topic for topic in free if _questions(topic, previous, pairs)]
    if not free:
        raise DataError(
            f"{plan.location}: what is known of this picture answers only {len(pairs)} different questions in a "
            f"dialogue; add objects or facts, or give --rounds {len(pairs)}."
        )
    if previous is None:
        openings = [topic for topic in free if topic.questions] or free
        return min(
            openings,
            key=lambda topic: (plan.opener_counts[topic.kind], _cost(plan, topic, topics), OPENERS.index(topic.kind)),
        )
    return min(free, key=lambda topic: _cost(plan, topic, topics) + plan.rng.random())


def _cost(plan: _Plan, topic: Topic, topics: Sequence[Topic]) -> float:
    """Cost of a topic as the next one; topics asked less often and follow-ups cost less."""
    # Facts are not visible in the picture; the model learns them from repetition in other words.
    cost = (0.8 if topic.kind == "fact" else 2.0) * plan.topic_counts[topic] - (
        2.5 if topic.needed and not plan.topic_counts[topic] else 0
    )
    previous = topics[-1] if topics else None
    if previous is not None and _refers(topic, previous):
        cost -= 1.5
    if topic.kind == "why":
        cost -= 0 if plan.topic_counts[topic] else 4  # possible only right after its fact
    elif not topic.needed:
        cost += 1.5 if topic.kind in ("seen", "trap") else 0.75
    if topic.kind == "fact" and any(
        other.kind == "why" and other.subject == topic.subject and not plan.topic_counts[other] for other in plan.topics
    ):
        cost -= 1.5  # its source is still to be asked
    kinds = {other.kind for other in topics if other.subject == topic.subject}
    if topic.kind == "present" and (kinds or any(other.kind in ("what", "describe") for other in topics)):
        cost += 4  # its presence was already mentioned
    if topic.kind == "about" and kinds & {"color", "where", "count"}:
        cost += 4
    if topic.kind in ("color", "where", "count") and "about" in kinds:
        cost += 4
    if topic.kind in ("absent", "trap") and kinds:
        cost += 4
    if topic.kind in ("seen", "present", "absent", "trap"):
        cost += 2 * sum(other.kind in (topic.kind, "trap") for other in topics)
    return cost


def _refers(topic: Topic, previous: Topic) -> bool:
    return bool(topic.follow_ups) and previous.kind in REFERS_TO[topic.kind] and previous.subject == topic.subject


def _questions(topic: Topic, previous: Topic | None, pairs: Sequence[Pair]) -> list[str]:
    """Usable wordings: follow-ups if possible, never a question of an earlier round."""
    asked = {fold(question) for question, _ in pairs}
    following = topic.follow_ups if previous is not None and _refers(topic, previous) else ()
    open_ones = [question for question in following if fold(question) not in asked]
    return open_ones or [question for question in topic.questions if fold(question) not in asked]


def _question(plan: _Plan, topic: Topic, previous: Topic | None, pairs: Sequence[Pair]) -> str:
    """The least used wording."""
    ways = _questions(topic, previous, pairs)
    question = min(plan.rng.sample(ways, len(ways)), key=lambda way: plan.question_counts[way])
    plan.question_counts[question] += 1
    return question
