"""Dialogues about a scene: question templates, answers in short full sentences, random choice of question kinds.

Questions, answers and probes use the same words for places and colors.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from data_gen.scenes.emoji import COLORS
from data_gen.scenes.nouns import Noun
from data_gen.scenes.scene import PLACES, Scene, SceneObject
from tuning.data.conversation import Conversation, image_dialogue

NUMBERS = ("no", "one", "two", "three")
BRITISH = 0.15  # share of color questions in British spelling ("colour"); answers are always American

# Question and answer templates; {what} lists all objects, {describe} lists them with colors and places.
DESCRIPTION = "The picture shows {describe}. The background is {background}."
DESCRIBE = (
    ("Describe the picture.", DESCRIPTION),
    ("Describe what you see.", DESCRIPTION),
    ("What does the picture show?", DESCRIPTION),
    ("Tell me about this picture.", DESCRIPTION),
    ("What is in this image, and where?", "There {be} {describe}."),
)
WHAT = (
    ("What do you see?", "I see {what}."),
    ("What do you see in the picture?", "I see {what}."),
    ("What can you see here?", "I see {what}."),
    ("What is in the picture?", "There {be} {what} in the picture."),
    ("What is there in this image?", "There {be} {what} in the picture."),
)
WHAT_ONE = (
    ("What object is in the picture?", "There {be} {what} in the picture."),
    ("What is this?", "This is {what}."),
    ("What object is this?", "This is {what}."),
    ("Name the object in the picture.", "This is {what}."),
)
COLOR = (
    "What color {be} the {name}?",
    "What color {be} the {name} in the picture?",
    "Which color {have} the {name} have?",
    "Tell me the color of the {name}.",
)
WHERE = (
    "Where {be} the {name}?",
    "Where {be} the {name} in the picture?",
    "Where do you see the {name}?",
    "In which part of the picture {be} the {name}?",
)
AT = ("What is {place}?", "What do you see {place}?", "What is {place} of the picture?", "Which object is {place}?")
HOW_MANY = ("How many {plural} are there?", "How many {plural} do you see?", "How many {plural} are in the picture?")
BACKGROUND = ("What color is the background?", "Which color is the background?", "What is the background color?")
IS_THERE = (
    "Is there {one} in the picture?",
    "Do you see {one}?",
    "Is there {one}?",
    "Can you see {one} in the picture?",
)
OF_COLOR = ("What is {color}?", "Which object is {color}?", "What is {color} in the picture?")


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question with its answer, and the object that a follow-up question may call `it`."""

    question: str
    answer: str
    subject: SceneObject | None = None


Asker = Callable[[random.Random, Scene, Sequence[Noun]], QuestionAnswer | None]


def make_dialogue(rng: random.Random, scene: Scene, nouns: Sequence[Noun], image: str) -> Conversation:
    """A dialogue of three to six rounds about one picture; `nouns` may name absent objects to ask about."""
    rounds = rng.randint(3, 6)
    dialogue: list[QuestionAnswer] = []
    weights = {kind: weight for kind, (weight, _) in QUESTION_KINDS.items()}
    for _ in range(12):
        if len(dialogue) == rounds:
            break
        pair = None
        if dialogue and (subject := dialogue[-1].subject) and subject.count == 1 and rng.random() < 0.35:
            pair = _follow_up(rng, subject)
        if pair is None:
            kind = rng.choices(list(weights), list(weights.values()))[0]
            pair = QUESTION_KINDS[kind][1](rng, scene, nouns)
            if kind in ONCE:
                del weights[kind]
        if pair and all(pair.answer != earlier.answer for earlier in dialogue):
            dialogue.append(pair)
    return image_dialogue(((pair.question, pair.answer) for pair in dialogue), image)


def ask_color(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    """Ask for the color of an object that has one."""
    question = rng.choice(COLOR).format(name=thing.name, be=thing.be, have="does" if thing.count == 1 else "do")
    return QuestionAnswer(_spelling(rng, question), f"The {thing.name} {thing.be} {thing.color}.", thing)


def ask_where(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    """Ask where an object is."""
    question = rng.choice(WHERE).format(name=thing.name, be=thing.be)
    return QuestionAnswer(question, f"The {thing.name} {thing.be} {join_words(thing.places)}.", thing)


def ask_at(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    """Ask which object is at the place of `thing`."""
    place = rng.choice(thing.places)
    question = rng.choice(AT).format(place=place)
    return QuestionAnswer(question, f"There is {_with_article(thing.noun.name)} {place}.", thing)


def ask_what(rng: random.Random, scene: Scene) -> QuestionAnswer:
    """Ask which objects the picture shows, without colors and places."""
    return _ask_all(rng, scene, WHAT + WHAT_ONE if scene.total == 1 else WHAT)


def _ask_all(rng: random.Random, scene: Scene, templates: Sequence[tuple[str, str]]) -> QuestionAnswer:
    question, answer = rng.choice(templates)
    return QuestionAnswer(question, fill_template(answer, scene), scene.objects[0] if scene.total == 1 else None)


def _at(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    if rng.random() > 0.12:
        return ask_at(rng, rng.choice(scene.objects))
    taken = [place for thing in scene.objects for place in thing.places]
    empty = [place for place in PLACES if all(_far_apart(place, other) for other in taken)]
    if not empty:
        return None
    place = rng.choice(empty)
    return QuestionAnswer(rng.choice(AT).format(place=place), f"There is nothing {place}.")


def _color(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    colored = [thing for thing in scene.objects if thing.color]
    return ask_color(rng, rng.choice(colored)) if colored else None


def _how_many(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> QuestionAnswer:
    kind = rng.random()
    subject = None
    if kind < 0.15:
        absent = absent_noun(rng, scene, nouns)
        count, name, plural = 0, absent.name, absent.plural
    elif kind < 0.45:
        count, name, plural = scene.total, "object", "objects"
    else:
        subject = rng.choice(scene.objects)
        count, name, plural = subject.count, subject.noun.name, subject.noun.plural
    answer = f"There is one {name}." if count == 1 else f"There are {NUMBERS[count]} {plural}."
    return QuestionAnswer(rng.choice(HOW_MANY).format(plural=plural), answer, subject)


def _is_there(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> QuestionAnswer:
    if rng.random() < 0.5:
        thing = rng.choice(scene.objects)
        name = _with_article(thing.noun.name)
        answer = f"there is {name} {thing.places[0]}" if thing.count == 1 else f"there are {_count_phrase(thing)}"
        return QuestionAnswer(rng.choice(IS_THERE).format(one=name), f"Yes, {answer}.", thing)
    absent = absent_noun(rng, scene, nouns)
    answer = f"No, there is no {absent.name} in the picture."
    if rng.random() < 0.5:
        answer = f"No, there is no {absent.name}. " + fill_template("There {be} {what}.", scene)
    return QuestionAnswer(rng.choice(IS_THERE).format(one=_with_article(absent.name)), answer)


def _is_color(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    colored = [thing for thing in scene.objects if thing.color]
    if not colored:
        return None
    thing = rng.choice(colored)
    yes = rng.random() < 0.5
    color = thing.color if yes else rng.choice([name for name in COLORS if name != thing.color])
    answer = f"{'Yes' if yes else 'No'}, the {thing.name} {thing.be} {thing.color}."
    return QuestionAnswer(f"{thing.be.capitalize()} the {thing.name} {color}?", answer, thing)


def _is_at(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    thing = rng.choice(scene.objects)
    if thing.count > 1:
        return None
    yes = rng.random() < 0.5
    place = thing.places[0] if yes else rng.choice([name for name in PLACES if _far_apart(name, thing.places[0])])
    answer = f"{'Yes' if yes else 'No'}, the {thing.name} is {thing.places[0]}."
    return QuestionAnswer(f"Is the {thing.name} {place}?", answer, thing)


def _of_color(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    """Which object has a color; only if no other object can show some of that color."""
    thing = rng.choice(scene.objects)
    others = [other for other in scene.objects if other is not thing]
    if thing.color is None or any(other.color == thing.color or not other.painted for other in others):
        return None
    question = rng.choice(OF_COLOR).format(color=thing.color)
    return QuestionAnswer(question, f"The {thing.name} {thing.be} {thing.color}.", thing)


def _follow_up(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    if thing.color and rng.random() < 0.5:
        question = rng.choice(("What color is it?", "And what color is it?", "Which color does it have?"))
        return QuestionAnswer(_spelling(rng, question), f"The {thing.name} is {thing.color}.", thing)
    question = rng.choice(("Where is it?", "And where is it?", "Where in the picture is it?"))
    return QuestionAnswer(question, f"The {thing.name} is {thing.places[0]}.", thing)


def _background(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer:
    return QuestionAnswer(_spelling(rng, rng.choice(BACKGROUND)), f"The background is {scene.background}.")


# Sampling weight of each kind. Naming the objects is the hardest to learn, so it has the largest weight.
QUESTION_KINDS: dict[str, tuple[int, Asker]] = {
    "what": (6, lambda rng, scene, _: ask_what(rng, scene)),
    "at": (4, _at),
    "describe": (3, lambda rng, scene, _: _ask_all(rng, scene, DESCRIBE)),
    "color": (5, _color),
    "where": (5, lambda rng, scene, _: ask_where(rng, rng.choice(scene.objects))),
    "how many": (2, _how_many),
    "background": (2, _background),
    "is there": (5, _is_there),
    "is color": (1, _is_color),
    "is at": (1, _is_at),
    "of color": (2, _of_color),
}
ONCE = ("what", "describe", "background")  # a second question of these kinds would repeat the answer in other words


def fill_template(answer: str, scene: Scene) -> str:
    """The template with its fields `be`, `what`, `describe` and `background` filled from the scene."""
    what = join_words(_count_phrase(thing) for thing in scene.objects)
    described = join_words(f"{_count_phrase(thing, thing.color)} {join_words(thing.places)}" for thing in scene.objects)
    return answer.format(be=scene.objects[0].be, what=what, describe=described, background=scene.background)


def absent_noun(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> Noun:
    """A random noun none of whose names fits an object of the scene."""
    present = {name for thing in scene.objects for name in thing.names}
    while True:
        noun = rng.choice(nouns)
        if not present & {noun.name, *noun.also, *(label for _, label in noun.pictures if label)}:
            return noun


def _count_phrase(thing: SceneObject, color: str | None = None) -> str:
    """`a dog`, `an orange dog`, `two dogs`."""
    words = f"{color} {thing.name}" if color else thing.name
    return _with_article(words) if thing.count == 1 else f"{NUMBERS[thing.count]} {words}"


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('uni') else 'a'} {words}"


def join_words(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _far_apart(place: str, other: str) -> bool:
    """Whether the place words exclude each other: opposite sides, or the middle and any side."""
    (column, row), (other_column, other_row) = PLACES[place], PLACES[other]
    opposite = max(abs(column - other_column), abs(row - other_row)) == 2
    return opposite or (place != other and (1, 1) in (PLACES[place], PLACES[other]))


def _spelling(rng: random.Random, question: str) -> str:
    return question.replace("color", "colour") if rng.random() < BRITISH else question
