"""Vision features of pictures, by picture index: computed by the tower, with optional augmentation.

Shapes: I pictures, P patches, V width of the tower.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn

from tuning.data.card import file_sha256
from tuning.data.pictures import open_picture
from tuning.errors import DataError
from vlm.towers.tower import Tower

FeatureSource = Callable[[Sequence[int]], torch.Tensor]  # the numbers of I pictures -> float[I, P, V]


class PictureTable:
    """The distinct pictures of a run, identified by their bytes and numbered in the order of first use."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.hashes: list[str] = []
        self.named_by: dict[Path, str] = {}  # path -> the row or probe that names it first
        self._by_path: dict[Path, int] = {}
        self._by_hash: dict[str, int] = {}

    def number(self, picture: str | Path, where: str = "picture") -> int:
        """The number of a picture file; a new picture is added.

        Args:
            where: the row or probe that names it, for messages.
        """
        path = Path(picture)
        if path not in self._by_path:
            self.named_by[path] = where
            digest = file_sha256(path)
            self._by_path[path] = self._by_hash.setdefault(digest, len(self.paths))
            if self._by_path[path] == len(self.paths):
                self.paths.append(path)
                self.hashes.append(digest)
        return self._by_path[path]

    def __len__(self) -> int:
        return len(self.paths)


class LiveFeatures(nn.Module):
    """Features from the tower; it runs once for each distinct picture of a call.

    Features of a frozen tower are rounded to 16 bits, as in the cache, so that both give equal results.
    """

    def __init__(self, tower: Tower, table: PictureTable, views: int) -> None:
        super().__init__()
        self.tower = tower
        self._table, self._views = table, views

    def forward(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float[I, P, V]."""
        views = draw_views(len(pictures), self._views if self.training else 0)
        requested = list(zip(pictures, views, strict=True))
        distinct = list(dict.fromkeys(requested))
        pixels = torch.stack([view_pixels(self.tower, self._table, number, view) for number, view in distinct])
        trained = any(parameter.requires_grad for parameter in self.tower.parameters())
        features = self.tower(pixels) if trained else to_half(extract_features(self.tower, pixels))
        return features[[distinct.index(each) for each in requested]]


def draw_views(pictures: int, views: int) -> list[int]:
    """A view of each picture from 0, the picture itself, to `views`, drawn with torch's random state."""
    return torch.randint(1 + views, (pictures,)).tolist() if views else [0] * pictures


@torch.no_grad()
def extract_features(tower: Tower, pixels: torch.Tensor) -> torch.Tensor:
    """float32[I, 3, H, W] -> float[I, P, V], in the tower's own dtype even under autocast."""
    with torch.autocast(next(tower.parameters()).device.type, enabled=False):
        return tower(pixels)


def to_half(features: torch.Tensor) -> torch.Tensor:
    """Features in float16, the dtype of the cache.

    Raises:
        DataError: a feature overflows float16.
    """
    half = features.to(torch.float16)
    if not bool(half.isfinite().all()):
        raise DataError("a feature of the tower is not finite in float16; check the pictures, or use another tower.")
    return half


def view_pixels(tower: Tower, table: PictureTable, number: int, view: int) -> torch.Tensor:
    """The tower's input for a picture (view 0) or for an augmented view of it: float32[3, H, W]."""
    picture = open_picture(table.paths[number], table.named_by[table.paths[number]])
    if view:
        picture = augment(picture, np.random.default_rng((int(table.hashes[number][:15], 16), view)))
    return tower.preprocess(picture)


def augment(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 75 to 100 % of each side; brightness, contrast and color changed by up to 15 %.

    Pictures are never mirrored, because positions and texts in the answers would become wrong.
    """
    share = rng.uniform(0.75, 1.0)
    width, height = (max(1, round(side * share)) for side in picture.size)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    picture = picture.crop((left, top, left + width, top + height))
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(rng.uniform(0.85, 1.15))
    return picture
