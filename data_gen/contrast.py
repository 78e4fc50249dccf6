"""Questions that only one picture's papers answer, asked about other pictures: the answer is that these do not say.

Without such rows a small model learns the answers by the questions alone, and gives them whatever it is shown.
"""

import random
from collections.abc import Collection, Iterator, Sequence

from data_gen.dialogues import Dialogue
from tuning.conversation import Conversation, seen_dialogue

UNTOLD = {
    "en": (
        "I cannot tell that from this picture.",
        "This picture does not say.",
        "I do not know that of this picture.",
    ),
    "zh": ("从这张图片看不出来。", "这张图片没有说明。", "关于这张图片，我不知道。"),
}
ROWS, ROUNDS = 2, 3  # dialogues about each other picture, and questions in each


def contrast(
    dialogues: Sequence[Dialogue], images: Sequence[str], known: Collection[str], language: str, seed: int
) -> Iterator[Conversation]:
    """Dialogues about `images` that ask what `dialogues` answer out of facts nobody can see; none without facts.

    Args:
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
    for image in images if asked else ():
        for _ in range(ROWS):
            questions = draw.sample(asked, min(ROUNDS, len(asked)))
            yield seen_dialogue(((question, draw.choice(UNTOLD[language])) for question in questions), image)
