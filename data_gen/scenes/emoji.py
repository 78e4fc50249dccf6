"""Emoji sprites for scenes: crop them, name their color, recolor them."""

import colorsys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import cast

from PIL import Image, ImageOps

from tuning.errors import DataError

RGB = tuple[int, int, int]

# Colors that stay distinguishable on a shaded object.
COLORS: dict[str, RGB] = {
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
# Shares of black in the darkest and of white in the lightest pixel. More black would turn orange to brown.
SHADING = {"red": (0.5, 0.18), "black": (0.8, 0.22), "white": (0.28, 0.9), "orange": (0.32, 0.32), "pink": (0.36, 0.32)}
GRAY: RGB = (138, 138, 140)  # for backgrounds only: shaded black and white objects are partly gray
MAX_SIDE = 160  # pixels of a sprite's longer side
MIN_COLOR_SHARE = 0.6  # share of a sprite's pixels that its named color needs
MIN_ALPHA = 128  # a pixel above it counts as visible


@dataclass(frozen=True, slots=True)
class Sprite:
    """An object cropped from its emoji picture.

    Args:
        picture: RGBA, at most `MAX_SIDE` pixels a side, without transparent margins.
        shares: share of the pixels for each named color; pixels between two names are not counted.
    """

    picture: Image.Image
    shares: dict[str, float]

    @property
    def color(self) -> str | None:
        """The color that at least `MIN_COLOR_SHARE` of the pixels have, or None."""
        name = max(self.shares, key=lambda color: self.shares[color], default=None)
        return name if name in COLORS and self.shares[name] >= MIN_COLOR_SHARE else None


@cache
def load_sprite(file: Path) -> Sprite:
    """Read and crop an emoji picture.

    Raises:
        DataError: the file cannot be decoded, or is fully transparent.
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
    picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Sprite(picture, _shares(picture))


def colorize(picture: Image.Image, color: str) -> Image.Image:
    """The sprite recolored to one named color; shading and outline stay."""
    alpha = picture.getchannel("A")
    visible = _above(alpha, MIN_ALPHA)
    light = ImageOps.autocontrast(picture.convert("L"), cutoff=1, mask=visible)
    middle = min(max(_median(light, visible), 40), 215)
    base = COLORS[color]
    dark, bright = SHADING.get(color, (0.55, 0.32))
    painted = ImageOps.colorize(
        light, black=_mix(base, (0, 0, 0), dark), mid=base, white=_mix(base, (255, 255, 255), bright), midpoint=middle
    )
    painted.putalpha(alpha)
    return painted


def color_name(red: int, green: int, blue: int) -> str | None:
    """The name of an RGB color (0 to 255 each): one of `COLORS`, `gray`, or None between two names."""
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    degrees = hue * 360
    if value < 0.26 or (value < 0.34 and saturation < 0.35):
        return "black"
    if saturation < (0.28 if 200 <= degrees < 300 else 0.17):  # white emoji have violet shadows
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
    counts = Counter(color_name(*pixel[:3]) for pixel in pixels if pixel[3] > MIN_ALPHA)
    total = sum(counts.values()) or 1
    return {name: count / total for name, count in counts.items() if name is not None}


def _above(channel: Image.Image, threshold: int) -> Image.Image:
    """A mask: white where the channel is above `threshold`, else black."""
    return channel.point([0] * (threshold + 1) + [255] * (255 - threshold))


def _median(light: Image.Image, mask: Image.Image) -> int:
    histogram = light.histogram(mask)
    half = sum(histogram) / 2
    return next(value for value, total in enumerate(accumulate(histogram)) if total >= half)


def _mix(first: RGB, second: RGB, share: float) -> RGB:
    """`share` of the second color in the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue
