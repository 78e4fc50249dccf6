"""The dialogues' questions, asked of other pictures: there is no such thing there, or no word of it.

Without such rows a small model learns the answers by the questions alone, and gives them whatever it is shown.
"""

import random
from collections.abc import Collection, Iterator, Sequence

from data_gen.image_qa import wording
from data_gen.image_qa.dialogues import Dialogue
from data_gen.image_qa.facts import Picture, Thing
from data_gen.image_qa.topics import absent_topics, true_of
from tuning.data.conversation import Conversation, image_dialogue
from tuning.evaluation.probes import mentions_any

UNTOLD = {
    "en": (
        "This picture does not say.",
        "The picture does not tell that.",
        "That cannot be seen in this picture.",
    ),
    "zh": ("从这张图片看不出来。", "这张图片没有说明。", "这张图片里没有写。"),
}
ASKED = frozenset({"fact", "present", "color", "where", "count", "about"})
ROWS, ROUNDS = 2, 4  # dialogues about each other picture, and questions in each


def contrast(
    dialogues: Sequence[Dialogue],
    things: Sequence[Thing],
    others: Sequence[Picture],
    known: Collection[str],
    language: str,
    seed: int,
) -> Iterator[Conversation]:
    """Dialogues about `others` that ask what `dialogues` answer and these pictures do not.

    Args:
        things: what is on the dialogues' pictures; a question that names one which another picture lacks is told so.
        known: subjects that are known of the other pictures too, and so not asked.
    """
    asked = {
        question: topic.kind
        for dialogue in dialogues
        for (question, _), topic in zip(dialogue.pairs, dialogue.topics, strict=True)
        if topic.kind in ASKED and topic.subject not in known
    }
    draw = random.Random(f"{seed} {language} contrast")
    for other in others:
        missing = _missing(things, other, language)
        answers = {question: _answers(question, kind, missing, language) for question, kind in asked.items()}
        open_ones = [question for question, texts in answers.items() if texts]
        if not open_ones:
            continue
        for _ in range(ROWS):
            questions = draw.sample(open_ones, min(ROUNDS, len(open_ones)))
            yield image_dialogue(((question, draw.choice(answers[question])) for question in questions), other.image)


def _missing(things: Sequence[Thing], other: Picture, language: str) -> list[Thing]:
    spoken = true_of(other, language)
    return [thing for thing in things if not mentions_any(spoken, wording.name_words(thing, language))]


def _answers(question: str, kind: str, missing: Sequence[Thing], language: str) -> tuple[str, ...]:
    """What is right to say of a picture without `missing`; nothing where that cannot be known."""
    for thing in missing:
        if mentions_any(question, wording.name_words(thing, language)):
            absent, taken_for_granted = absent_topics(thing, language)
            return absent.answers if kind == "present" else taken_for_granted.answers
    return UNTOLD[language] if kind == "fact" else ()
