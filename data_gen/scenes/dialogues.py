"""Make dialogues about a scene: random questions, answers in short full sentences.

Questions, answers and probes use the same words for places and colors.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from data_gen.scenes.emoji import COLORS
from data_gen.scenes.nouns import Noun
from data_gen.scenes.scene import PLACES, Scene, SceneObject
from tuning.data.conversation import Conversation, image_dialogue
from tuning.paths import shipped_file
from tuning.yaml_files import read_yaml

NUMBERS = ("no", "one", "two", "three")
BRITISH = 0.15  # share of color questions in British spelling ("colour"); answers are always American


@cache
def _phrases() -> dict[str, Any]:
    """The phrase bank: lists of questions, or of (question, answer) pairs, by kind."""
    return read_yaml(shipped_file("data/scenes.en.yaml"), "phrase bank").values


@dataclass(frozen=True, slots=True)
class QuestionAnswer:
    """A question with its answer, and the object that a follow-up question may call `it`."""

    question: str
    answer: str
    subject: SceneObject | None = None


Asker = Callable[[random.Random, Scene, Sequence[Noun]], QuestionAnswer | None]


def make_dialogue(rng: random.Random, scene: Scene, nouns: Sequence[Noun], image: str) -> Conversation:
    """A dialogue of three to six rounds about one picture; `nouns` supplies absent objects to ask about."""
    rounds = rng.randint(3, 6)
    dialogue: list[QuestionAnswer] = []
    weights = {kind: weight for kind, (weight, _) in QUESTION_KINDS.items()}
    for _ in range(12):
        if len(dialogue) == rounds:
            break
        if dialogue and (subject := dialogue[-1].subject) and subject.count == 1 and rng.random() < 0.35:
            pair = _follow_up(rng, subject)
        else:
            kind = rng.choices(list(weights), list(weights.values()))[0]
            pair = QUESTION_KINDS[kind][1](rng, scene, nouns)
            if kind in ONCE:
                del weights[kind]
        if pair and all(pair.answer != earlier.answer for earlier in dialogue):
            dialogue.append(pair)
    return image_dialogue(((pair.question, pair.answer) for pair in dialogue), image)


def ask_color(rng: random.Random, thing: SceneObject, kind: str = "color") -> QuestionAnswer:
    """Ask for the color of an object that has one."""
    question = _question(rng, kind, name=thing.name, be=thing.be, have="does" if thing.count == 1 else "do")
    return QuestionAnswer(_spelling(rng, question), _color_answer(thing), thing)


def ask_where(rng: random.Random, thing: SceneObject, kind: str = "where") -> QuestionAnswer:
    """Ask where an object is."""
    question = _question(rng, kind, name=thing.name, be=thing.be)
    return QuestionAnswer(question, f"The {thing.name} {thing.be} {join_words(thing.places)}.", thing)


def ask_at(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    """Ask which object is at the place of `thing`."""
    place = rng.choice(thing.places)
    return QuestionAnswer(
        _question(rng, "at", place=place), f"There is {_with_article(thing.noun.name)} {place}.", thing
    )


def ask_what(rng: random.Random, scene: Scene) -> QuestionAnswer:
    """Ask which objects the picture shows, without colors and places."""
    return _ask_all(rng, scene, "what", *(["what_one"] if scene.total == 1 else []))


def _ask_all(rng: random.Random, scene: Scene, *kinds: str) -> QuestionAnswer:
    question, answer = rng.choice([pair for kind in kinds for pair in _phrases()[kind]])
    return QuestionAnswer(question, fill_template(answer, scene), scene.objects[0] if scene.total == 1 else None)


def _at(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    if rng.random() > 0.12:
        return ask_at(rng, rng.choice(scene.objects))
    taken = [place for thing in scene.objects for place in thing.places]
    empty = [place for place in PLACES if all(_far_apart(place, other) for other in taken)]
    if not empty:
        return None
    place = rng.choice(empty)
    return QuestionAnswer(_question(rng, "at", place=place), f"There is nothing {place}.")


def _color(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    colored = _colored(scene)
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
    return QuestionAnswer(_question(rng, "how_many", plural=plural), answer, subject)


def _is_there(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> QuestionAnswer:
    if rng.random() < 0.5:
        thing = rng.choice(scene.objects)
        name = _with_article(thing.noun.name)
        answer = f"there is {name} {thing.places[0]}" if thing.count == 1 else f"there are {_count_phrase(thing)}"
        return QuestionAnswer(_question(rng, "is_there", one=name), f"Yes, {answer}.", thing)
    absent = absent_noun(rng, scene, nouns)
    answer = f"No, there is no {absent.name} in the picture."
    if rng.random() < 0.5:
        answer = f"No, there is no {absent.name}. " + fill_template("There {be} {what}.", scene)
    return QuestionAnswer(_question(rng, "is_there", one=_with_article(absent.name)), answer)


def _is_color(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer | None:
    colored = _colored(scene)
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
    """Ask which object has a color, only if no other object can show some of that color."""
    thing = rng.choice(scene.objects)
    others = [other for other in scene.objects if other is not thing]
    if thing.color is None or any(other.color == thing.color or not other.painted for other in others):
        return None
    return QuestionAnswer(_question(rng, "of_color", color=thing.color), _color_answer(thing), thing)


def _follow_up(rng: random.Random, thing: SceneObject) -> QuestionAnswer:
    if thing.color and rng.random() < 0.5:
        return ask_color(rng, thing, "color_of_it")
    return ask_where(rng, thing, "where_is_it")


def _background(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> QuestionAnswer:
    return QuestionAnswer(_spelling(rng, _question(rng, "background")), f"The background is {scene.background}.")


# Sampling weight of each kind. Naming the objects is the hardest to learn, so it has the largest weight.
QUESTION_KINDS: dict[str, tuple[int, Asker]] = {
    "what": (6, lambda rng, scene, _: ask_what(rng, scene)),
    "at": (4, _at),
    "describe": (3, lambda rng, scene, _: _ask_all(rng, scene, "describe")),
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


def describe(scene: Scene) -> str:
    """The picture in two sentences: objects with colors and places, and the background."""
    return fill_template(_phrases()["describe"][0][1], scene)


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


def _question(rng: random.Random, kind: str, **fields: str) -> str:
    question: str = rng.choice(_phrases()[kind])
    return question.format(**fields)


def _colored(scene: Scene) -> list[SceneObject]:
    return [thing for thing in scene.objects if thing.color]


def _color_answer(thing: SceneObject) -> str:
    return f"The {thing.name} {thing.be} {thing.color}."


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
    """Whether two places exclude each other: opposite sides, or the middle and any other place."""
    (column, row), (other_column, other_row) = PLACES[place], PLACES[other]
    opposite = max(abs(column - other_column), abs(row - other_row)) == 2
    return opposite or (place != other and (1, 1) in (PLACES[place], PLACES[other]))


def _spelling(rng: random.Random, question: str) -> str:
    return question.replace("color", "colour") if rng.random() < BRITISH else question
