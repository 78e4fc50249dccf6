"""Contrast rows for rehearsal: the questions of the dialogues about other pictures, answered "absent" or "unknown".

Without them a small model learns the answers from the questions alone and ignores the picture.
"""

import random
from collections.abc import Collection, Iterator, Sequence

from data_gen.image_qa import wording
from data_gen.image_qa.dialogues import Dialogue
from data_gen.image_qa.facts import Picture, Thing
from data_gen.image_qa.topics import absent_topics, true_words
from tuning.data.conversation import Conversation, image_dialogue
from tuning.evaluation.probes import mentions_any

UNKNOWN = {
    "en": (
        "This picture does not say.",
        "The picture does not tell that.",
        "That cannot be seen in this picture.",
    ),
    "zh": ("从这张图片看不出来。", "这张图片没有说明。", "这张图片里没有写。"),
}
KINDS = frozenset({"fact", "present", "color", "where", "count", "about"})
ROWS, ROUNDS = 2, 4  # dialogues about each other picture; questions in each


def contrast_rows(
    dialogues: Sequence[Dialogue],
    things: Sequence[Thing],
    others: Sequence[Picture],
    known: Collection[str],
    language: str,
    seed: int,
) -> Iterator[Conversation]:
    """Dialogues about `others` with questions of `dialogues` that these pictures do not answer.

    Args:
        things: objects of the dialogues' pictures; the answer says so if another picture lacks one.
        known: subjects that the other pictures have facts on; these are not asked.
    """
    kinds = {
        question: topic.kind
        for dialogue in dialogues
        for (question, _), topic in zip(dialogue.pairs, dialogue.topics, strict=True)
        if topic.kind in KINDS and topic.subject not in known
    }
    rng = random.Random(f"{seed} {language} contrast")
    for other in others:
        missing = _missing(things, other, language)
        answers = {question: _answers(question, kind, missing, language) for question, kind in kinds.items()}
        usable = [question for question, texts in answers.items() if texts]
        if not usable:
            continue
        for _ in range(ROWS):
            questions = rng.sample(usable, min(ROUNDS, len(usable)))
            yield image_dialogue(((question, rng.choice(answers[question])) for question in questions), other.image)


def _missing(things: Sequence[Thing], other: Picture, language: str) -> list[Thing]:
    words = true_words(other, language)
    return [thing for thing in things if not mentions_any(words, wording.name_words(thing, language))]


def _answers(question: str, kind: str, missing: Sequence[Thing], language: str) -> tuple[str, ...]:
    """Correct answers about a picture without the `missing` objects; empty if the answer is not known."""
    for thing in missing:
        if mentions_any(question, wording.name_words(thing, language)):
            absent, presupposing = absent_topics(thing, language)
            return absent.answers if kind == "present" else presupposing.answers
    return UNKNOWN[language] if kind == "fact" else ()
