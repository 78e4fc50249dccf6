"""Contrast rows for rehearsal: the same questions about other pictures, answered "absent" or "unknown".

Without these rows, a small model learns the answers from the questions alone and ignores the picture.
"""

import random
from collections.abc import Collection, Iterator, Sequence

from data_gen.image_qa import grammar
from data_gen.image_qa.dialogues import Dialogue
from data_gen.image_qa.facts import Picture, Thing
from data_gen.image_qa.topics import absent_topics, read_bank, true_words
from tuning.data.conversation import Conversation, image_dialogue
from tuning.evaluation.probes import mentions_any

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
    """Dialogues about `others`, with questions of `dialogues` that these pictures do not answer.

    Args:
        things: objects of the trained pictures; if another picture lacks the object of a question, the answer says so.
        known: subjects that the other pictures have facts about; these questions are left out.
    """
    kinds = {
        question: topic.kind
        for dialogue in dialogues
        for (question, _), topic in zip(dialogue.pairs, dialogue.topics, strict=True)
        if topic.kind in KINDS and topic.subject not in known
    }
    rng = random.Random(f"{seed} {language} contrast")
    for other in others:
        words = true_words(other, language)
        missing = [thing for thing in things if not mentions_any(words, grammar.name_words(thing, language))]
        answers = {question: _answers(question, kind, missing, language) for question, kind in kinds.items()}
        usable = [question for question, texts in answers.items() if texts]
        if not usable:
            continue
        for _ in range(ROWS):
            questions = rng.sample(usable, min(ROUNDS, len(usable)))
            yield image_dialogue(((question, rng.choice(answers[question])) for question in questions), other.image)


def _answers(question: str, kind: str, missing: Sequence[Thing], language: str) -> Sequence[str]:
    """Correct answers about a picture without the `missing` objects; empty if the answer is not known."""
    for thing in missing:
        if mentions_any(question, grammar.name_words(thing, language)):
            absent, presupposing = absent_topics(thing, language)
            return absent.answers if kind == "present" else presupposing.answers
    return read_bank(language)["unknown"]["answers"] if kind == "fact" else ()
