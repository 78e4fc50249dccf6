"""Topics strung into dialogues that a person could have had: varied openings, follow-ups, all of it asked somewhere."""

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
"""What a follow-up of each kind may come right after, on the same subject."""
OPENERS = ("describe", "what", "color", "fact", "where", "text", "count", "present", "about", "absent", "trap")


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Questions with their answers, and the topics they are on."""

    pairs: tuple[Pair, ...]
    topics: tuple[Topic, ...]


@dataclass(slots=True)
class _Plan:
    """What has been asked so far, over all dialogues about one picture."""

    topics: tuple[Topic, ...]
    where: str
    draw: random.Random
    slots: int
    asked: Counter[Topic] = field(default_factory=Counter[Topic])
    said: Counter[str] = field(default_factory=Counter[str])
    openers: Counter[str] = field(default_factory=Counter[str])

    @property
    def due(self) -> list[Topic]:
        return [topic for topic in self.topics if topic.needed and not self.asked[topic]]


def make_dialogues(
    topics: Sequence[Topic], number: int, rounds: int, draw: random.Random, where: str
) -> list[Dialogue]:
    """Dialogues of exactly `rounds` questions, no two of them equal in one dialogue; every needed topic is asked.

    Args:
        number: of dialogues.
        where: the picture's place, for messages.

    Raises:
        DataError: what is known does not fill a dialogue, or does not fit into all of them.
    """
    topics = _fitted([topic for topic in topics if topic.questions or topic.follow_ups], number * rounds, where)
    enough = len([topic for topic in topics if topic.questions])
    if enough < rounds:
        raise DataError(
            f"{where}: what is known of this picture answers {enough} different questions, and a dialogue of {rounds} "
            f"rounds asks {rounds}; add objects or facts, or give --rounds {enough}."
        )
    plan = _Plan(tuple(topics), where, draw, number * rounds)
    return [_dialogue(plan, rounds) for _ in range(number)]


def _fitted(topics: list[Topic], slots: int, where: str) -> list[Topic]:
    """Fewer topics that must be asked, where the dialogues have no room: what is absent, then a thing's details,
    which are told in one answer instead."""

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
            f"{where}: the dialogues of this picture have room for {slots} questions, and what is known of it needs "
            f"{due()}; raise --dialogues or --rounds."
        )
    return topics


def _dialogue(plan: _Plan, rounds: int) -> Dialogue:
    pairs: list[Pair] = []
    topics: list[Topic] = []
    while len(pairs) < rounds:
        topic = _next(plan, topics, pairs)
        before = topics[-1] if topics else None
        pairs.append((_question(plan, topic, before, pairs), topic.answers[plan.asked[topic] % len(topic.answers)]))
        topics.append(topic)
        plan.asked[topic] += 1
        plan.slots -= 1
    plan.openers[topics[0].kind] += 1
    return Dialogue(tuple(pairs), tuple(topics))


def _next(plan: _Plan, topics: Sequence[Topic], pairs: Sequence[Pair]) -> Topic:
    """The topic that comes best after these."""
    before = topics[-1] if topics else None
    due = plan.due
    free = due if len(due) >= plan.slots else [topic for topic in plan.topics if topic not in topics]
    free = [topic for topic in free if _questions(topic, before, pairs)]
    if not free:
        raise DataError(
            f"{plan.where}: what is known of this picture answers only {len(pairs)} different questions in a "
            f"dialogue; add objects or facts, or give --rounds {len(pairs)}."
        )
    if before is None:
        openings = [topic for topic in free if topic.questions] or free
        return min(
            openings,
            key=lambda topic: (plan.openers[topic.kind], _unfit(plan, topic, topics), OPENERS.index(topic.kind)),
        )
    return min(free, key=lambda topic: _unfit(plan, topic, topics) + plan.draw.random())


def _unfit(plan: _Plan, topic: Topic, topics: Sequence[Topic]) -> float:
    """How ill a topic fits here; whatever was asked less, and goes on about the same thing, fits better."""
    # What nobody can see is learned from being asked again, in other words each time.
    unfit = (0.8 if topic.kind == "fact" else 2.0) * plan.asked[topic] - (
        2.5 if topic.needed and not plan.asked[topic] else 0
    )
    before = topics[-1] if topics else None
    if before is not None and _refers(topic, before):
        unfit -= 1.5
    if topic.kind == "why":
        unfit -= 0 if plan.asked[topic] else 4  # the chance does not come often: only right after its fact
    elif not topic.needed:
        unfit += 1.5 if topic.kind in ("seen", "trap") else 0.75
    if topic.kind == "fact" and any(
        other.kind == "why" and other.subject == topic.subject and not plan.asked[other] for other in plan.topics
    ):
        unfit -= 1.5  # its source has not been asked yet
    told = {other.kind for other in topics if other.subject == topic.subject}
    if topic.kind == "present" and (told or any(other.kind in ("what", "describe") for other in topics)):
        unfit += 4  # nobody asks whether there is what was just spoken of
    if topic.kind == "about" and told & {"color", "where", "count"}:
        unfit += 4
    if topic.kind in ("color", "where", "count") and "about" in told:
        unfit += 4
    if topic.kind in ("absent", "trap") and told:
        unfit += 4
    if topic.kind in ("seen", "present", "absent", "trap"):
        unfit += 2 * sum(other.kind in (topic.kind, "trap") for other in topics)
    return unfit


def _refers(topic: Topic, before: Topic) -> bool:
    return bool(topic.follow_ups) and before.kind in REFERS_TO[topic.kind] and before.subject == topic.subject


def _questions(topic: Topic, before: Topic | None, pairs: Sequence[Pair]) -> list[str]:
    """The ways to ask that are open here: following up where that can be, never in the words of an earlier round."""
    asked = {fold(question) for question, _ in pairs}
    following = topic.follow_ups if before is not None and _refers(topic, before) else ()
    open_ones = [question for question in following if fold(question) not in asked]
    return open_ones or [question for question in topic.questions if fold(question) not in asked]


def _question(plan: _Plan, topic: Topic, before: Topic | None, pairs: Sequence[Pair]) -> str:
    """Each time in other words, until there are none left."""
    ways = _questions(topic, before, pairs)
    question = min(plan.draw.sample(ways, len(ways)), key=lambda way: plan.said[way])
    plan.said[question] += 1
    return question
