"""Image preprocessing as in LLaVA and XTuner: pad to square, resize, crop, normalize.

Square padding (`image_aspect_ratio: pad`, arXiv 2310.03744) neither crops nor stretches a picture. Pillow resizes it,
because the published models were trained with Pillow's filters.
"""

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MAX_SIDE = 8192  # pixels; the square of a long thin picture could need gigabytes


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Preprocessing of one tower.

    Args:
        size: side of the result in pixels.
        resize: side in pixels before the center crop to `size`.
        mean, std: of each channel, on the scale 0 to 1.
        resample: Pillow's resampling filter.
    """

    size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int = Image.Resampling.BICUBIC

    @property
    def padding_color(self) -> tuple[int, int, int]:
        """The mean color, used for padding."""
        red, green, blue = (int(round(channel * 255, 6)) for channel in self.mean)
        return red, green, blue

    def __call__(self, picture: Image.Image) -> Tensor:
        """An RGB picture as float32[3, size, size]."""
        square = pad_to_square(picture, self.padding_color)
        square = square.resize((self.resize, self.resize), Image.Resampling(self.resample))
        edge = (self.resize - self.size) // 2
        square = square.crop((edge, edge, edge + self.size, edge + self.size))
        scaled = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 255
        return (scaled - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]


def pad_to_square(picture: Image.Image, color: tuple[int, int, int]) -> Image.Image:
    """The picture centered in a square with its longer side, which is at most `MAX_SIDE` pixels."""
    longer = max(picture.size)
    if longer > MAX_SIDE:
        width, height = (max(1, round(side * MAX_SIDE / longer)) for side in picture.size)
        picture, longer = picture.resize((width, height), Image.Resampling.BICUBIC), MAX_SIDE
    square = Image.new("RGB", (longer, longer), color)
    square.paste(picture, ((longer - picture.width) // 2, (longer - picture.height) // 2))
    return square
