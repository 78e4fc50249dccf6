"""What is asked and answered about a scene: short whole sentences, each kind of question also as the first one.

Place and colour words are the same in questions, answers and probes.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from data_gen.scenes.emoji import COLOURS
from data_gen.scenes.nouns import Noun
from data_gen.scenes.scene import PLACES, Scene, Thing
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn

NUMBERS = ("no", "one", "two", "three")
BRITISH = 0.15  # share of questions that say colour; answers never do

# Questions and the answer to each; {what} is filled with all there is, {describe} also with colours and places.
DESCRIBE = (
    ("Describe the picture.", "The picture shows {describe}. The background is {ground}."),
    ("Describe what you see.", "The picture shows {describe}. The background is {ground}."),
    ("What does the picture show?", "The picture shows {describe}. The background is {ground}."),
    ("Tell me about this picture.", "The picture shows {describe}. The background is {ground}."),
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
COLOUR = (
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
GROUND = ("What color is the background?", "Which color is the background?", "What is the background color?")
THERE = ("Is there {one} in the picture?", "Do you see {one}?", "Is there {one}?", "Can you see {one} in the picture?")
OF_COLOUR = ("What is {colour}?", "Which object is {colour}?", "What is {colour} in the picture?")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its answer, and the single object that `it` means afterwards."""

    question: str
    answer: str
    about: Thing | None = None


Asker = Callable[[random.Random, Scene, Sequence[Noun]], Exchange | None]


def converse(rng: random.Random, scene: Scene, nouns: Sequence[Noun], image: str) -> Conversation:
    """Three to six questions and answers on one picture; `nouns` may be asked after though they are not there."""
    wanted = rng.randint(3, 6)
    said: list[Exchange] = []
    left = dict(ASKERS)
    for _ in range(12):
        if len(said) == wanted:
            break
        exchange = None
        if said and (meant := said[-1].about) and rng.random() < 0.35:
            exchange = _follow_up(rng, meant)
        if exchange is None:
            ask = rng.choices(list(left), list(left.values()))[0]
            exchange = ask(rng, scene, nouns)
            if ask in ONCE:
                del left[ask]
        if exchange and all(exchange.answer != each.answer for each in said):
            said.append(exchange)
    turns: list[Turn] = []
    for number, exchange in enumerate(said):
        turns.append(Turn("user", exchange.question if number else f"{DEFAULT_IMAGE_TOKEN}\n{exchange.question}"))
        turns.append(Turn("assistant", exchange.answer))
    return Conversation(tuple(turns), (image,))


def ask_colour(rng: random.Random, thing: Thing) -> Exchange:
    """What colour something is; it must have one."""
    question = rng.choice(COLOUR).format(name=_name(thing), be=_be(thing), have="does" if thing.count == 1 else "do")
    return Exchange(_spelling(rng, question), _colour_answer(_the(thing), thing), _single(thing))


def ask_where(rng: random.Random, thing: Thing) -> Exchange:
    """Where something is."""
    question = rng.choice(WHERE).format(name=_name(thing), be=_be(thing))
    return Exchange(question, f"{_the(thing)} {_be(thing)} {listed(thing.places)}.", _single(thing))


def ask_at(rng: random.Random, thing: Thing) -> Exchange:
    """What is at the place of something."""
    place = rng.choice(thing.places)
    question = rng.choice(AT).format(place=place)
    return Exchange(question, f"There is {_one(thing.noun.name)} {place}.", _single(thing))


def ask_what(rng: random.Random, scene: Scene) -> Exchange:
    """What there is, without colours and places."""
    question, answer = rng.choice(WHAT + WHAT_ONE if scene.total == 1 else WHAT)
    thing = scene.things[0]
    return Exchange(question, filled(answer, scene), _single(thing) if scene.total == 1 else None)


def _describe(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange:
    question, answer = rng.choice(DESCRIBE)
    return Exchange(question, filled(answer, scene), _single(scene.things[0]) if scene.total == 1 else None)


def _what(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange:
    return ask_what(rng, scene)


def _at(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange | None:
    if rng.random() > 0.12:
        return ask_at(rng, rng.choice(scene.things))
    empty = [place for place in PLACES if all(_unlike(place, taken) for each in scene.things for taken in each.places)]
    if not empty:
        return None
    place = rng.choice(empty)
    return Exchange(rng.choice(AT).format(place=place), f"There is nothing {place}.")


def _colour(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange | None:
    coloured = [thing for thing in scene.things if thing.colour]
    return ask_colour(rng, rng.choice(coloured)) if coloured else None


def _where(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange:
    return ask_where(rng, rng.choice(scene.things))


def _how_many(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> Exchange:
    kind = rng.random()
    if kind < 0.15:
        absent = absent_noun(rng, scene, nouns)
        return Exchange(rng.choice(HOW_MANY).format(plural=absent.plural), f"There are no {absent.plural}.")
    if kind < 0.45:
        return Exchange(rng.choice(HOW_MANY).format(plural="objects"), f"{_there(scene.total, 'object', 'objects')}.")
    thing = rng.choice(scene.things)
    answer = f"{_there(thing.count, thing.noun.name, thing.noun.plural)}."
    return Exchange(rng.choice(HOW_MANY).format(plural=thing.noun.plural), answer, _single(thing))


def _ground(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange:
    return Exchange(_spelling(rng, rng.choice(GROUND)), f"The background is {scene.ground}.")


def _is_there(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> Exchange:
    if rng.random() < 0.5:
        thing = rng.choice(scene.things)
        question = rng.choice(THERE).format(one=_one(thing.noun.name))
        if thing.count > 1:
            return Exchange(question, f"Yes, there are {NUMBERS[thing.count]} {thing.noun.plural}.")
        return Exchange(question, f"Yes, there is {_one(thing.noun.name)} {thing.places[0]}.", thing)
    absent = absent_noun(rng, scene, nouns)
    answer = f"No, there is no {absent.name} in the picture."
    if rng.random() < 0.5:
        answer = f"No, there is no {absent.name}. " + filled("There {be} {what}.", scene)
    return Exchange(rng.choice(THERE).format(one=_one(absent.name)), answer)


def _is_colour(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange | None:
    coloured = [thing for thing in scene.things if thing.colour]
    if not coloured:
        return None
    thing = rng.choice(coloured)
    right = rng.random() < 0.5
    asked = thing.colour if right else rng.choice([name for name in COLOURS if name != thing.colour])
    answer = _colour_answer(f"{'Yes' if right else 'No'}, the {_name(thing)}", thing)
    return Exchange(f"{_be(thing).capitalize()} the {_name(thing)} {asked}?", answer, _single(thing))


def _is_at(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange | None:
    thing = rng.choice(scene.things)
    if thing.count > 1:
        return None
    right = rng.random() < 0.5
    asked = thing.places[0] if right else rng.choice([place for place in PLACES if _unlike(place, thing.places[0])])
    answer = f"{'Yes' if right else 'No'}, the {thing.noun.name} is {thing.places[0]}."
    return Exchange(f"Is the {thing.noun.name} {asked}?", answer, thing)


def _of_colour(rng: random.Random, scene: Scene, _: Sequence[Noun]) -> Exchange | None:
    """Which object has a colour; asked only where no other object may have some of it."""
    thing = rng.choice(scene.things)
    others = [each for each in scene.things if each is not thing]
    if thing.colour is None or any(each.colour == thing.colour or not each.painted for each in others):
        return None
    question = rng.choice(OF_COLOUR).format(colour=thing.colour)
    return Exchange(question, _colour_answer(_the(thing), thing), _single(thing))


def _follow_up(rng: random.Random, thing: Thing) -> Exchange:
    if thing.colour and rng.random() < 0.5:
        question = rng.choice(("What color is it?", "And what color is it?", "Which color does it have?"))
        return Exchange(_spelling(rng, question), _colour_answer(_the(thing), thing), thing)
    question = rng.choice(("Where is it?", "And where is it?", "Where in the picture is it?"))
    return Exchange(question, f"{_the(thing)} is {thing.places[0]}.", thing)


# How often each kind is asked; naming what is seen is hardest to learn.
ASKERS: dict[Asker, int] = {
    _what: 6,
    _at: 4,
    _describe: 3,
    _colour: 5,
    _where: 5,
    _how_many: 2,
    _ground: 2,
    _is_there: 5,
    _is_colour: 1,
    _is_at: 1,
    _of_colour: 2,
}
ONCE = (_what, _describe, _ground)  # asked again they would only be said in other words


def filled(answer: str, scene: Scene) -> str:
    be = "is" if scene.things[0].count == 1 else "are"
    what = listed(_several(thing) for thing in scene.things)
    described = listed(f"{_several(thing, thing.colour)} {listed(thing.places)}" for thing in scene.things)
    return answer.format(be=be, what=what, describe=described, ground=scene.ground)


def absent_noun(rng: random.Random, scene: Scene, nouns: Sequence[Noun]) -> Noun:
    """Something that is not there under any of its names."""
    present = {name for thing in scene.things for name in thing.names}
    while True:
        noun = rng.choice(nouns)
        if not present & {noun.name, *noun.also, *(label for _, label in noun.pictures if label)}:
            return noun


def _several(thing: Thing, colour: str | None = None) -> str:
    """`a dog`, `an orange dog`, `two dogs`."""
    if thing.count == 1:
        return _one(f"{colour} {thing.noun.name}" if colour else thing.noun.name)
    return " ".join(filter(None, (NUMBERS[thing.count], colour, thing.noun.plural)))


def _one(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' and not words.startswith('uni') else 'a'} {words}"


def listed(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _there(count: int, name: str, plural: str) -> str:
    return f"There is one {name}" if count == 1 else f"There are {NUMBERS[count]} {plural}"


def _colour_answer(who: str, thing: Thing) -> str:
    return f"{who} {_be(thing)} {thing.colour}."


def _name(thing: Thing) -> str:
    return thing.noun.name if thing.count == 1 else thing.noun.plural


def _the(thing: Thing) -> str:
    return f"The {_name(thing)}"


def _be(thing: Thing) -> str:
    return "is" if thing.count == 1 else "are"


def _single(thing: Thing) -> Thing | None:
    return thing if thing.count == 1 else None


def _unlike(place: str, other: str) -> bool:
    """Whether nobody would call one place the other: opposite sides, or the middle and any side."""
    (column, row), (across, down) = PLACES[place], PLACES[other]
    return max(abs(column - across), abs(row - down)) == 2 or (
        place != other and (1, 1) in (PLACES[place], PLACES[other])
    )


def _spelling(rng: random.Random, question: str) -> str:
    return question.replace("color", "colour") if rng.random() < BRITISH else question
