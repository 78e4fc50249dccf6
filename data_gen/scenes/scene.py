"""Scenes: one to three objects on a coloured ground, drawn so that kind, colour, place and number cannot be guessed.

A scene depends on its key alone (seed, purpose, number), so it is the same whichever process draws it.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from data_gen.scenes.emoji import COLOURS, GREY, LARGEST, RGB, colourise, load_sprite
from data_gen.scenes.nouns import Noun

SIZE = 256  # pixels a side of every scene
SMALLEST = 72
GROUNDS: dict[str, RGB] = COLOURS | {"gray": GREY}
TOO_CLOSE = frozenset(  # object and ground that even people would strain to part
    frozenset(pair) for pair in (("black", "brown"), ("white", "gray"), ("orange", "brown"), ("orange", "red"))
)
SHARED = 0.3  # largest share of an object in its own colours that may have the ground's

# Place words by column and row, and how often a lone object stands there: the sides as often as the corners together.
PLACES: dict[str, tuple[int, int]] = {
    "in the middle": (1, 1),
    "on the left": (0, 1),
    "on the right": (2, 1),
    "at the top": (1, 0),
    "at the bottom": (1, 2),
    "in the top left corner": (0, 0),
    "in the top right corner": (2, 0),
    "in the bottom left corner": (0, 2),
    "in the bottom right corner": (2, 2),
}
PLACE_WEIGHTS = (2, 2, 2, 2, 2, 1, 1, 1, 1)
PAIRS = (
    *(("on the left", "on the right"),) * 4,
    *(("at the top", "at the bottom"),) * 2,
    ("in the top left corner", "in the bottom right corner"),
    ("in the top right corner", "in the bottom left corner"),
)
TRIPLES = (
    *(("on the left", "in the middle", "on the right"),) * 2,
    ("at the top", "in the middle", "at the bottom"),
    ("in the top left corner", "in the top right corner", "at the bottom"),
    ("at the top", "in the bottom left corner", "in the bottom right corner"),
)

# How many of each kind of object a scene has, and how often.
ARRANGEMENTS = ((1,), (1, 1), (2,), (3,), (1, 1, 1), (2, 1))
ARRANGEMENT_WEIGHTS = (46, 30, 9, 5, 5, 5)


@dataclass(frozen=True, slots=True)
class Thing:
    """Objects of one kind in a scene, all from one picture.

    Args:
        colour: what it is called by, None where no one colour is clear; `painted` when it was given it.
        places: words of where each of them is; as many as there are.
        label: the picture's own name, when it has one.
    """

    noun: Noun
    hexcode: str
    label: str | None
    colour: str | None
    painted: bool
    places: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many of them there are."""
        return len(self.places)

    @property
    def names(self) -> tuple[str, ...]:
        """Every word that is right for it."""
        named = (self.noun.name, self.noun.plural, *((self.label,) if self.label else ()), *self.noun.also)
        return tuple(dict.fromkeys(named))


@dataclass(frozen=True, slots=True)
class Scene:
    """What is in a picture, known before it is drawn."""

    things: tuple[Thing, ...]
    ground: str

    @property
    def total(self) -> int:
        """How many objects there are."""
        return sum(thing.count for thing in self.things)


def plan_scene(rng: random.Random, nouns: Sequence[Noun], files: dict[str, Path], most: int = 3) -> Scene:
    """Choose objects, colours, places and a ground on which all of them stand out; at most `most` objects."""
    weights = [w if sum(counts) <= most else 0 for counts, w in zip(ARRANGEMENTS, ARRANGEMENT_WEIGHTS, strict=True)]
    return plan_arranged(rng, nouns, files, rng.choices(ARRANGEMENTS, weights)[0])


def plan_arranged(rng: random.Random, nouns: Sequence[Noun], files: dict[str, Path], counts: Sequence[int]) -> Scene:
    """A scene of `counts[i]` objects of its i-th kind."""
    ground = rng.choice(list(GROUNDS))
    total = sum(counts)
    if total == 1:
        spots = list(rng.choices(list(PLACES), PLACE_WEIGHTS))
    else:
        spots = list(rng.choice(PAIRS if total == 2 else TRIPLES))
        rng.shuffle(spots)
    things: list[Thing] = []
    for noun, count in zip(rng.sample(nouns, len(counts)), counts, strict=True):
        hexcode, label = rng.choice(noun.pictures)
        colour, painted = _colour(rng, files[hexcode], ground)
        places, spots = sorted(spots[:count], key=list(PLACES).index), spots[count:]
        things.append(Thing(noun, hexcode, label, colour, painted, tuple(places)))
    return Scene(tuple(things), ground)


def draw_scene(rng: random.Random, scene: Scene, files: dict[str, Path]) -> Image.Image:
    """The picture of a scene, RGB, `SIZE` pixels a side; `rng` moves, turns, mirrors and sizes the objects."""
    picture = _ground(rng, scene.ground)
    for thing in scene.things:
        cut = load_sprite(files[thing.hexcode]).picture
        if thing.painted and thing.colour:
            cut = colourise(cut, thing.colour)
        if rng.random() < 0.5:
            cut = ImageOps.mirror(cut)
        for place in thing.places:
            column, row = PLACES[place]
            largest = {1: LARGEST if (column, row) == (1, 1) else 112, 2: 108}.get(scene.total, 80)
            turned = cut.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
            shown = _scaled(turned, rng.uniform(SMALLEST, largest))
            x, y = _along(rng, column, shown.width), _along(rng, row, shown.height)
            picture.paste(shown, (x, y), shown)
    return picture


def _colour(rng: random.Random, file: Path, ground: str) -> tuple[str | None, bool]:
    """A colour that stands out from the ground, and whether it is painted; its own colours in two of five."""
    sprite = load_sprite(file)
    if rng.random() < 0.4 and sprite.shares.get(ground, 0.0) < SHARED and not _close(sprite.colour, ground):
        return sprite.colour, False
    return rng.choice([name for name in COLOURS if name != ground and not _close(name, ground)]), True


def _close(colour: str | None, ground: str) -> bool:
    return colour is not None and frozenset((colour, ground)) in TOO_CLOSE


def _ground(rng: random.Random, name: str) -> Image.Image:
    """A plain ground, or one that shades softly across; both ends are still called by the same name."""
    base = GROUNDS[name]
    spread = {"white": 10, "black": 18, "gray": 18, "brown": 18}.get(name, 26)
    first, second = (_shifted(rng, base, spread) for _ in range(2))
    if rng.random() < 0.4:
        return Image.new("RGB", (SIZE, SIZE), first)
    ramp = Image.linear_gradient("L") if rng.random() < 0.7 else Image.radial_gradient("L")
    ramp = ramp.rotate(rng.choice((0, 90, 180, 270)))
    return ImageOps.colorize(ramp, black=first, white=second)


def _shifted(rng: random.Random, base: RGB, spread: int) -> RGB:
    lighter = rng.randint(-spread, spread)
    red, green, blue = (min(max(value + lighter + rng.randint(-6, 6), 0), 255) for value in base)
    return red, green, blue


def _scaled(picture: Image.Image, longer: float) -> Image.Image:
    scale = longer / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _along(rng: random.Random, third: int, length: int) -> int:
    """Where an object of that length begins, so that its middle lies in the third that its place names."""
    middle = SIZE * (0.2, 0.5, 0.8)[third] + rng.uniform(-0.03, 0.03) * SIZE
    return round(min(max(middle - length / 2, 2), SIZE - length - 2))
