"""Questions that only one picture's papers answer, asked of others: there is no such thing, or no word.

Without such rows a small model learns the answers by the questions alone, and gives them whatever it is shown.
"""

import random
from collections.abc import Collection, Iterator, Sequence

from data_gen import wording
from data_gen.dialogues import Dialogue
from data_gen.facts import Picture, Thing
from data_gen.topics import absent_topics, true_of
from tuning.conversation import Conversation, seen_dialogue
from tuning.probes import mentions_any

UNTOLD = {
    "en": (
        "This picture does not say.",
        "The picture does not tell that.",
        "That cannot be seen in this picture.",
    ),
    "zh": ("从这张图片看不出来。", "这张图片没有说明。", "这张图片里没有写。"),
}
ROWS, ROUNDS = 2, 3  # dialogues about each other picture, and questions in each


def contrast(
    dialogues: Sequence[Dialogue],
    things: Sequence[Thing],
    others: Sequence[Picture],
    known: Collection[str],
    language: str,
    seed: int,
) -> Iterator[Conversation]:
    """Dialogues about `others` that ask what `dialogues` answer out of facts nobody can see; none without facts.

    Args:
        things: what is on the dialogues' pictures; a question that names one which another picture lacks is told so.
        known: subjects that are known of the other pictures too, and so not asked.
    """
    asked = [
        question
        for dialogue in dialogues
        for (question, _), topic in zip(dialogue.pairs, dialogue.topics, strict=True)
        if topic.kind == "fact" and topic.subject not in known
    ]
    asked = list(dict.fromkeys(asked))
    draw = random.Random(f"{seed} {language} contrast")
    for other in others if asked else ():
        missing = _missing(things, other, language)
        for _ in range(ROWS):
            questions = draw.sample(asked, min(ROUNDS, len(asked)))
            pairs = ((question, draw.choice(_answers(question, missing, language))) for question in questions)
            yield seen_dialogue(pairs, other.image)


def _missing(things: Sequence[Thing], other: Picture, language: str) -> list[Thing]:
    spoken = true_of(other, language)
    return [thing for thing in things if not mentions_any(spoken, wording.name_words(thing, language))]


def _answers(question: str, missing: Sequence[Thing], language: str) -> tuple[str, ...]:
    for thing in missing:
        if mentions_any(question, wording.name_words(thing, language)):
            return absent_topics(thing, language)[1].answers
    return UNTOLD[language]
