"""Emoji pictures as objects of a scene: cut out, named by their colour, or given one."""

import colorsys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps

from tuning.errors import DataError

RGB = tuple[int, int, int]

# Far enough apart to be told from each other on a shaded object.
COLOURS: dict[str, RGB] = {
    "red": (214, 30, 38),
    "orange": (247, 128, 16),
    "yellow": (250, 214, 30),
    "green": (40, 152, 58),
    "blue": (34, 88, 218),
    "purple": (126, 44, 172),
    "pink": (250, 130, 184),
    "brown": (122, 74, 40),
    "black": (34, 34, 38),
    "white": (238, 238, 240),
}
# Where shade and light end, as shares of black and white mixed in; deep orange would be brown, a shaded white grey.
DEPTHS = {"red": (0.5, 0.18), "black": (0.8, 0.22), "white": (0.28, 0.9), "orange": (0.32, 0.32), "pink": (0.36, 0.32)}
GREY: RGB = (138, 138, 140)  # a ground, never an object: shading makes every black or white one partly grey
LARGEST = 160  # pixels of an object's longer side, at most
CLEAR = 0.6  # share of an object's pixels that one colour must have to be called its colour
ALPHA_SEEN = 128


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object cut out of its picture.

    Args:
        picture: RGBA, at most `LARGEST` pixels a side, no empty rim.
        shares: how much of it has each named colour; what is between two names is left out.
    """

    picture: Image.Image
    shares: dict[str, float]

    @property
    def colour(self) -> str | None:
        """The colour that a person would call it by, where one is clear."""
        name = max(self.shares, key=lambda each: self.shares[each], default=None)
        return name if name in COLOURS and self.shares[name] >= CLEAR else None


@cache
def load_sprite(file: Path) -> Sprite:
    """Cut an object out of its picture.

    Raises:
        DataError: the file is no picture, or shows nothing.
    """
    try:
        opened: Image.Image = Image.open(file)
        picture = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{file}: cannot be read as a picture ({error}); unpack the emoji pictures again.") from error
    box = _above(picture.getchannel("A"), 8).getbbox()
    if box is None:
        raise DataError(f"{file}: shows nothing; unpack the emoji pictures again.")
    picture = picture.crop(box)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    return Sprite(picture, _shares(picture))


def colourise(picture: Image.Image, colour: str) -> Image.Image:
    """The same object in one named colour: light and shade and outline stay, its own colours go."""
    alpha = picture.getchannel("A")
    seen = _above(alpha, ALPHA_SEEN)
    light = ImageOps.autocontrast(picture.convert("L"), cutoff=1, mask=seen)
    middle = min(max(_median(light, seen), 40), 215)
    base = COLOURS[colour]
    dark, bright = DEPTHS.get(colour, (0.55, 0.32))
    painted = ImageOps.colorize(
        light, black=_mix(base, (0, 0, 0), dark), mid=base, white=_mix(base, (255, 255, 255), bright), midpoint=middle
    )
    painted.putalpha(alpha)
    return painted


def name_colour(red: int, green: int, blue: int) -> str | None:
    """What a person calls a colour (0 to 255 each): one of `COLOURS`, `gray`, or None between two names."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    degrees = hue * 360
    if value < 0.26 or (value < 0.34 and saturation < 0.35):
        return "black"
    if saturation < (0.28 if 200 <= degrees < 300 else 0.17):  # their whites have violet shadows
        return "white" if value > 0.8 else "gray"
    if degrees < 50 and value < 0.68 and saturation > 0.25:
        return "brown" if degrees > 8 or saturation < 0.62 else "red"
    if (12 <= degrees < 50 and saturation < 0.55) or (degrees > 300 and value < 0.6):
        return None  # tan and skin, plum and wine
    if (degrees >= 290 or degrees < 20) and saturation < 0.62 and value > 0.75:
        return "pink" if degrees >= 290 or degrees < 12 else None
    spans = ((12, "red"), (17, None), (37, "orange"), (42, None), (60, "yellow"), (75, None), (164, "green"))
    spans += ((186, None), (246, "blue"), (256, None), (292, "purple"), (300, None), (338, "pink"), (360, "red"))
    return next(name for end, name in spans if degrees <= end)


def _shares(picture: Image.Image) -> dict[str, float]:
    small = picture.resize((32, 32))
    pixels = cast(list[tuple[int, int, int, int]], list(small.get_flattened_data()))
    counts = Counter(name_colour(*pixel[:3]) for pixel in pixels if pixel[3] > ALPHA_SEEN)
    total = sum(counts.values()) or 1
    return {name: count / total for name, count in counts.items() if name is not None}


def _above(channel: Image.Image, least: int) -> Image.Image:
    """White where a channel is above `least`, else black."""
    return channel.point([0] * (least + 1) + [255] * (255 - least))


def _median(light: Image.Image, mask: Image.Image) -> int:
    histogram = light.histogram(mask)
    left = sum(histogram) / 2
    for value, count in enumerate(histogram):
        left -= count
        if left <= 0:
            return value
    return 128


def _mix(first: RGB, second: RGB, share: float) -> RGB:
    """`share` of the second colour in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
