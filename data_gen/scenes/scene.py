"""Plan and draw scenes: one to three emoji objects on a background.

A scene depends only on the random generator passed in, so it is the same in every process.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from data_gen.scenes.emoji import COLORS, GRAY, MAX_SIDE, RGB, colorize, load_sprite
from data_gen.scenes.nouns import Noun

SIZE = 256  # pixels a side of every scene
MIN_SIDE = 72
BACKGROUNDS: dict[str, RGB] = COLORS | {"gray": GRAY}
SIMILAR_COLORS = frozenset(  # pairs that are hard to tell apart as object and background
    frozenset(pair) for pair in (("black", "brown"), ("white", "gray"), ("orange", "brown"), ("orange", "red"))
)
MAX_BACKGROUND_SHARE = 0.3  # of the pixels of an object that keeps its own colors

# Column and row of each place, and its sampling weight for a single object.
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

# Number of objects of each kind in a scene, and the sampling weights.
ARRANGEMENTS = ((1,), (1, 1), (2,), (3,), (1, 1, 1), (2, 1))
ARRANGEMENT_WEIGHTS = (46, 30, 9, 5, 5, 5)


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One kind of object in a scene: one or more copies of one emoji picture.

    Args:
        color: its named color, None if no color dominates; `painted` if it was recolored.
        places: the place of each copy.
        label: the picture's own name, if it has one.
    """

    noun: Noun
    hexcode: str
    label: str | None
    color: str | None
    painted: bool
    places: tuple[str, ...]

    @property
    def count(self) -> int:
        """The number of copies."""
        return len(self.places)

    @property
    def name(self) -> str:
        """The noun, in the plural if there are several."""
        return self.noun.name if self.count == 1 else self.noun.plural

    @property
    def be(self) -> str:
        """`is` or `are`."""
        return "is" if self.count == 1 else "are"

    @property
    def names(self) -> tuple[str, ...]:
        """Every word that names it correctly."""
        names = (self.noun.name, self.noun.plural, *((self.label,) if self.label else ()), *self.noun.also)
        return tuple(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of a picture, planned before it is drawn."""

    objects: tuple[SceneObject, ...]
    background: str

    @property
    def total(self) -> int:
        """The number of objects, copies included."""
        return sum(thing.count for thing in self.objects)


def plan_scene(rng: random.Random, nouns: Sequence[Noun], files: dict[str, Path]) -> Scene:
    """A random scene of one to three objects; every object color differs clearly from the background."""
    return plan_objects(rng, nouns, files, rng.choices(ARRANGEMENTS, ARRANGEMENT_WEIGHTS)[0])


def plan_objects(rng: random.Random, nouns: Sequence[Noun], files: dict[str, Path], counts: Sequence[int]) -> Scene:
    """A random scene with `counts[i]` copies of its i-th kind of object."""
    background = rng.choice(list(BACKGROUNDS))
    total = sum(counts)
    if total == 1:
        spots = list(rng.choices(list(PLACES), PLACE_WEIGHTS))
    else:
        spots = list(rng.choice(PAIRS if total == 2 else TRIPLES))
        rng.shuffle(spots)
    objects: list[SceneObject] = []
    for noun, count in zip(rng.sample(nouns, len(counts)), counts, strict=True):
        hexcode, label = rng.choice(noun.pictures)
        color, painted = _color(rng, files[hexcode], background)
        places, spots = sorted(spots[:count], key=list(PLACES).index), spots[count:]
        objects.append(SceneObject(noun, hexcode, label, color, painted, tuple(places)))
    return Scene(tuple(objects), background)


def draw_scene(rng: random.Random, scene: Scene, files: dict[str, Path]) -> Image.Image:
    """The RGB picture of a scene, `SIZE` pixels a side; position, rotation, mirroring and size are random."""
    picture = _background(rng, scene.background)
    for thing in scene.objects:
        sprite = load_sprite(files[thing.hexcode]).picture
        if thing.painted and thing.color:
            sprite = colorize(sprite, thing.color)
        if rng.random() < 0.5:
            sprite = ImageOps.mirror(sprite)
        for place in thing.places:
            column, row = PLACES[place]
            max_side = {1: MAX_SIDE if (column, row) == (1, 1) else 112, 2: 108}.get(scene.total, 80)
            rotated = sprite.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
            scaled = _scale(rotated, rng.uniform(MIN_SIDE, max_side))
            x, y = _offset(rng, column, scaled.width), _offset(rng, row, scaled.height)
            picture.paste(scaled, (x, y), scaled)
    return picture


def _color(rng: random.Random, file: Path, background: str) -> tuple[str | None, bool]:
    """A color unlike the background, and whether to paint it; 40 % of objects keep their own colors if possible."""
    sprite = load_sprite(file)
    if (
        rng.random() < 0.4
        and sprite.shares.get(background, 0.0) < MAX_BACKGROUND_SHARE
        and not _similar(sprite.color, background)
    ):
        return sprite.color, False
    return rng.choice([name for name in COLORS if name != background and not _similar(name, background)]), True


def _similar(color: str | None, background: str) -> bool:
    return frozenset((color, background)) in SIMILAR_COLORS


def _background(rng: random.Random, name: str) -> Image.Image:
    """A plain background or a soft gradient; both ends have the same color name."""
    base = BACKGROUNDS[name]
    spread = {"white": 10, "black": 18, "gray": 18, "brown": 18}.get(name, 26)
    first, second = (_vary(rng, base, spread) for _ in range(2))
    if rng.random() < 0.4:
        return Image.new("RGB", (SIZE, SIZE), first)
    ramp = Image.linear_gradient("L") if rng.random() < 0.7 else Image.radial_gradient("L")
    ramp = ramp.rotate(rng.choice((0, 90, 180, 270)))
    return ImageOps.colorize(ramp, black=first, white=second)


def _vary(rng: random.Random, base: RGB, spread: int) -> RGB:
    lighter = rng.randint(-spread, spread)
    red, green, blue = (min(max(value + lighter + rng.randint(-6, 6), 0), 255) for value in base)
    return red, green, blue


def _scale(picture: Image.Image, longer: float) -> Image.Image:
    scale = longer / max(picture.size)
    width, height = (max(round(side * scale), 1) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _offset(rng: random.Random, third: int, length: int) -> int:
    """Start of an object of that length, so that its middle lies in the given third of the picture."""
    middle = SIZE * (0.2, 0.5, 0.8)[third] + rng.uniform(-0.03, 0.03) * SIZE
    return round(min(max(middle - length / 2, 2), SIZE - length - 2))
