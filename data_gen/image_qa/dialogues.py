"""Plan dialogues: order the topics, vary openings and follow-ups, cover every required topic."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from data_gen.image_qa.topics import Topic
from tuning.errors import DataError
from tuning.evaluation.probes import normalize

Pair = tuple[str, str]
DETAILS = frozenset({"color", "where", "count"})
SEEN = DETAILS | {"present"}
REFERS_TO = {"color": SEEN, "where": SEEN, "count": SEEN, "seen": DETAILS, "why": frozenset({"fact"})}
"""Kinds that a follow-up of each kind may follow, on the same subject."""
OPENERS = ("describe", "what", "color", "fact", "where", "text", "count", "present", "about", "absent", "trap")


@dataclass(slots=True)
class Dialogue:
    """Question-and-answer pairs and the topic of each; rounds are added one by one."""

    pairs: list[Pair] = field(default_factory=list[Pair])
    topics: list[Topic] = field(default_factory=list[Topic])


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


def make_dialogues(
    topics: Sequence[Topic], number: int, rounds: int, rng: random.Random, location: str
) -> list[Dialogue]:
    """Dialogues of exactly `rounds` different questions; every needed topic is asked.

    Args:
        number: number of dialogues.
        location: position of the picture in the facts file, for error messages.

    Raises:
        DataError: the facts are too few for one dialogue, or too many for all dialogues.
    """
    topics = _fitted([topic for topic in topics if topic.questions or topic.follow_ups], number * rounds, location)
    _check_rounds(sum(bool(topic.questions) for topic in topics), rounds, location)
    plan = _Plan(tuple(topics), location, rng, number * rounds)
    return [_dialogue(plan, rounds) for _ in range(number)]


def _check_rounds(answered: int, rounds: int, location: str) -> None:
    if answered < rounds:
        raise DataError(
            f"{location}: the facts of this picture answer {answered} different questions in a dialogue; add "
            f"objects or facts, or give --rounds {answered}."
        )


def _fitted(topics: list[Topic], slots: int, location: str) -> list[Topic]:
    """Topics, fewer of them needed if the dialogues have fewer than that many questions.

    First absent objects are no longer needed; then one topic `about` an object replaces its color, place and count.
    """

    def due() -> int:
        return sum(topic.needed for topic in topics)

    if due() > slots:
        topics = [replace(topic, needed=topic.needed and topic.kind != "absent") for topic in topics]
    for subject in [topic.subject for topic in reversed(topics) if topic.kind == "about"]:
        if due() > slots:
            topics = [
                replace(topic, needed=topic.kind == "about")
                if topic.subject == subject and topic.kind in DETAILS | {"about"}
                else topic
                for topic in topics
            ]
    if due() > slots:
        raise DataError(
            f"{location}: the dialogues of this picture have {slots} questions, and its facts need {due()}; raise "
            "--dialogues or --rounds."
        )
    return topics


def _dialogue(plan: _Plan, rounds: int) -> Dialogue:
    dialogue = Dialogue()
    for _ in range(rounds):
        topic = _next(plan, dialogue)
        answer = topic.answers[plan.topic_counts[topic] % len(topic.answers)]
        dialogue.pairs.append((_question(plan, topic, dialogue), answer))
        dialogue.topics.append(topic)
        plan.topic_counts[topic] += 1
        plan.slots -= 1
    plan.opener_counts[dialogue.topics[0].kind] += 1
    return dialogue


def _next(plan: _Plan, dialogue: Dialogue) -> Topic:
    """The topic with the lowest cost as the next one."""
    due = [topic for topic in plan.topics if topic.needed and not plan.topic_counts[topic]]
    free = due if len(due) >= plan.slots else [topic for topic in plan.topics if topic not in dialogue.topics]
    free = [topic for topic in free if _questions(topic, dialogue)]
    if not free:
        _check_rounds(len(dialogue.pairs), len(dialogue.pairs) + 1, plan.location)
    if dialogue.topics:
        return min(free, key=lambda topic: _cost(plan, topic, dialogue) + plan.rng.random())
    return min(
        free,
        key=lambda topic: (plan.opener_counts[topic.kind], _cost(plan, topic, dialogue), OPENERS.index(topic.kind)),
    )


def _cost(plan: _Plan, topic: Topic, dialogue: Dialogue) -> float:
    """Cost of a topic as the next one; topics asked less often and follow-ups cost less."""
    # Facts are not visible in the picture; the model learns them from repetition in other words.
    cost = (0.8 if topic.kind == "fact" else 2.0) * plan.topic_counts[topic] - (
        2.5 if topic.needed and not plan.topic_counts[topic] else 0
    )
    if _refers(topic, dialogue):
        cost -= 1.5
    if topic.kind == "why":
        cost -= 0 if plan.topic_counts[topic] else 4  # possible only right after its fact
    elif not topic.needed:
        cost += 1.5 if topic.kind in ("seen", "trap") else 0.75
    if topic.kind == "fact" and any(
        other.kind == "why" and other.subject == topic.subject and not plan.topic_counts[other] for other in plan.topics
    ):
        cost -= 1.5  # the question about its source follows
    all_kinds = {other.kind for other in dialogue.topics}
    kinds = {other.kind for other in dialogue.topics if other.subject == topic.subject}
    if (
        (topic.kind == "present" and (kinds or all_kinds & {"what", "describe"}))
        or (topic.kind == "about" and kinds & DETAILS)
        or (topic.kind in DETAILS and "about" in kinds)
        or (topic.kind in ("absent", "trap") and kinds)
    ):
        cost += 4  # an earlier answer of the dialogue already contains the answer
    if topic.kind in ("seen", "present", "absent", "trap"):
        cost += 2 * sum(other.kind in (topic.kind, "trap") for other in dialogue.topics)
    return cost


def _refers(topic: Topic, dialogue: Dialogue) -> bool:
    """Whether the topic can be asked as a follow-up of the last round."""
    if not topic.follow_ups or not dialogue.topics:
        return False
    previous = dialogue.topics[-1]
    return previous.kind in REFERS_TO[topic.kind] and previous.subject == topic.subject


def _questions(topic: Topic, dialogue: Dialogue) -> list[str]:
    """Usable wordings: follow-ups if possible, never a question of an earlier round."""
    asked = {normalize(question) for question, _ in dialogue.pairs}
    follow_ups = topic.follow_ups if _refers(topic, dialogue) else ()
    usable = [question for question in follow_ups if normalize(question) not in asked]
    return usable or [question for question in topic.questions if normalize(question) not in asked]


def _question(plan: _Plan, topic: Topic, dialogue: Dialogue) -> str:
    """The least used wording."""
    usable = _questions(topic, dialogue)
    question = min(plan.rng.sample(usable, len(usable)), key=lambda text: plan.question_counts[text])
    plan.question_counts[question] += 1
    return question
