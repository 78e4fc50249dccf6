"""Vision features by picture number: the picture table, live features from the tower, augmented views.

Shapes: I pictures, P patches, V width of the tower.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import nn

from tuning.data.pictures import open_picture, picture_hash
from tuning.errors import DataError
from vlm.towers.tower import Tower


class FeatureSource(Protocol):
    """Features by the numbers of pictures."""

    def __call__(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float[I, P, V]."""
        ...


class PictureTable:
    """The distinct pictures of a run, identified by their bytes and numbered in order of first use."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.hashes: list[str] = []
        self.named_by: dict[Path, str] = {}  # path -> the row or probe that names it first
        self._by_path: dict[Path, int] = {}
        self._by_hash: dict[str, int] = {}

    def number(self, picture: str | Path, where: str = "picture") -> int:
        """The number of the picture in a file; `where` is the row or probe that names it, for messages."""
        path = Path(picture)
        if path not in self._by_path:
            self.named_by[path] = where
            digest = picture_hash(path)
            self._by_path[path] = self._by_hash.setdefault(digest, len(self.paths))
            if self._by_path[path] == len(self.paths):
                self.paths.append(path)
                self.hashes.append(digest)
        return self._by_path[path]

    def __len__(self) -> int:
        return len(self.paths)


class LiveFeatures(nn.Module):
    """Features from the tower; each distinct picture of a call runs through it once.

    A frozen tower's features are rounded to 16 bits as the cache rounds them, so that both give equal results.
    """

    def __init__(self, tower: Tower, table: PictureTable, views: int) -> None:
        super().__init__()
        self.tower = tower
        self._table, self._views = table, views

    def forward(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float[I, P, V]."""
        views = [0] * len(pictures)
        if self.training and self._views:
            views = torch.randint(1 + self._views, (len(pictures),)).tolist()
        wanted = list(zip(pictures, views, strict=True))
        distinct = list(dict.fromkeys(wanted))
        pixels = torch.stack([view_pixels(self.tower, self._table, number, view) for number, view in distinct])
        trained = any(parameter.requires_grad for parameter in self.tower.parameters())
        features = self.tower(pixels) if trained else to_half(extract_features(self.tower, pixels))
        return features[[distinct.index(each) for each in wanted]]


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
        raise DataError("a feature of the tower is not finite in 16 bits; check the pictures, or use another tower.")
    return half


def view_pixels(tower: Tower, table: PictureTable, number: int, view: int) -> torch.Tensor:
    """The input of the tower for a picture (view 0) or an augmented view of it: float32[3, H, W]."""
    picture = open_picture(table.paths[number], table.named_by[table.paths[number]])
    if view:
        picture = augment(picture, np.random.default_rng((int(table.hashes[number][:15], 16), view)))
    return tower.preprocess(picture)


def augment(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 75 to 100 % of each side; brightness, contrast and color changed by up to 15 %.

    Pictures are never mirrored: places and texts in the answers would be wrong.
    """
    share = rng.uniform(0.75, 1.0)
    width, height = (max(1, round(side * share)) for side in picture.size)
    left = int(rng.integers(0, picture.width - width + 1))
    top = int(rng.integers(0, picture.height - height + 1))
    picture = picture.crop((left, top, left + width, top + height))
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(rng.uniform(0.85, 1.15))
    return picture
