"""Features of pictures by number: kept from one run of a frozen tower, or from the tower each time.

With a frozen tower each distinct picture goes through it once, before training; the features lie in a memory-mapped
file of the cache folder, and the tower leaves the device. Pictures are told apart by their bytes, files by the tower's
weights and preprocessing.

Shapes: I pictures, P patches, V width of the tower.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageEnhance
from torch import nn

from tuning.data.pictures import open_picture, picture_hash
from tuning.errors import DataError, DeviceError
from tuning.paths import cache_folder
from tuning.progress import ProgressBar
from tuning.run_dir import read_jsonl
from vlm.towers.registry import Tower

log = logging.getLogger("twinlens")
TOWER_BATCH = 16  # pictures that go through the tower together
PREFETCH_GROUPS = 4  # groups of them that are being opened meanwhile


class FeatureSource(Protocol):
    """Features by the numbers of pictures."""

    def __call__(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float[I, P, V]."""
        ...


class PictureTable:
    """The distinct pictures of a run, told apart by their bytes and numbered in the order they were met."""

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.hashes: list[str] = []
        self._by_path: dict[Path, int] = {}
        self._by_hash: dict[str, int] = {}

    def number(self, path: Path) -> int:
        """The number of the picture in a file."""
        known = self._by_path.get(path)
        if known is not None:
            return known
        digest = picture_hash(path)
        number = self._by_hash.setdefault(digest, len(self.paths))
        if number == len(self.paths):
            self.paths.append(path)
            self.hashes.append(digest)
        self._by_path[path] = number
        return number

    def __len__(self) -> int:
        return len(self.paths)


class CachedFeatures(nn.Module):
    """Features out of a memory-mapped file.

    Args:
        kept: float16[rows, P, V].
        rows: int64[pictures, 1 + views], the row of each view; the first is the picture as it is.
    """

    def __init__(self, kept: np.ndarray, rows: np.ndarray) -> None:
        super().__init__()
        self._kept, self._rows = kept, rows

    def forward(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float16[I, P, V], in training each from one of its views, drawn from torch's state."""
        numbers = np.asarray(pictures)
        views = np.zeros(len(numbers), np.int64)
        if self.training and self._rows.shape[1] > 1:
            views = torch.randint(self._rows.shape[1], (len(numbers),)).numpy()
        return torch.from_numpy(self._kept[self._rows[numbers, views]])


class LiveFeatures(nn.Module):
    """Features from the tower, each distinct picture of a call once.

    Without an adapter they are rounded as the kept ones are, so that it makes no difference which of the two is used.
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
        pixels = torch.stack([self._pixels(number, view) for number, view in distinct])
        trained = any(parameter.requires_grad for parameter in self.tower.parameters())
        features = self.tower(pixels) if trained else to_half(extract_features(self.tower, pixels))
        return features[[distinct.index(each) for each in wanted]]

    def _pixels(self, number: int, view: int) -> torch.Tensor:
        return view_pixels(self.tower, self._table.paths[number], self._table.hashes[number], view)


@torch.no_grad()
def extract_features(tower: Tower, pixels: torch.Tensor) -> torch.Tensor:
    """float32[I, 3, H, W] -> float[I, P, V], in the tower's own type whatever is computed around it."""
    with torch.autocast(next(tower.parameters()).device.type, enabled=False):
        return tower(pixels)


def to_half(features: torch.Tensor) -> torch.Tensor:
    """The 16 bits that features are kept in.

    Raises:
        DataError: a feature does not fit into them.
    """
    half = features.to(torch.float16)
    if not bool(half.isfinite().all()):
        raise DataError("a feature of the tower is not finite in 16 bits; look at the pictures, or take another tower.")
    return half


def view_pixels(tower: Tower, path: Path, digest: str, view: int) -> torch.Tensor:
    """A picture, or a lightly cropped and coloured view of it, as the tower takes it: float32[3, H, W]."""
    picture = open_picture(path, "picture")
    return tower.preprocess(augment(picture, np.random.default_rng((int(digest[:15], 16), view))) if view else picture)


def augment(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A crop of 75 to 100 % of each side, brightness, contrast and colour changed by up to 15 %.

    Pictures are not mirrored: places and texts would no longer be what the answers say.
    """
    width, height = picture.size
    share = rng.uniform(0.75, 1.0)
    crop = max(1, round(width * share)), max(1, round(height * share))
    left, top = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(picture.size, crop, strict=True))
    picture = picture.crop((left, top, left + crop[0], top + crop[1]))
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        picture = kind(picture).enhance(rng.uniform(0.85, 1.15))
    return picture


class FeatureCacheFile:
    """The kept features of one tower: `features.f16`, rows of P x V halves, and `index.jsonl`, what each row shows.

    Rows are only added; a name enters the index when its row is on disk, so that a killed run leaves a usable store.
    """

    def __init__(self, folder: Path, patches: int, width: int) -> None:
        self.folder = folder
        self._shape = patches, width
        self.row_bytes = patches * width * 2

    @property
    def _rows_file(self) -> Path:
        return self.folder / "features.f16"

    @property
    def _index_file(self) -> Path:
        return self.folder / "index.jsonl"

    def index(self) -> dict[str, int]:
        """The row of everything kept, by name."""
        return {entry["name"]: entry["row"] for entry in read_jsonl(self._index_file)}

    def add(self, names: Sequence[str], features: torch.Tensor, first: int) -> None:
        """Keep float16[I, P, V] as the rows from `first`."""
        self._rows_file.touch()
        with self._rows_file.open("r+b") as stream:
            stream.seek(first * self.row_bytes)
            stream.write(features.cpu().contiguous().numpy().tobytes())
        with self._index_file.open("a", encoding="utf-8") as stream:
            stream.writelines(
                json.dumps({"name": name, "row": first + number}) + "\n" for number, name in enumerate(names)
            )

    def mapped(self) -> np.ndarray:
        """float16[rows, P, V], read from disk as it is used."""
        rows = self._rows_file.stat().st_size // self.row_bytes
        return np.memmap(self._rows_file, np.float16, "r", shape=(rows, *self._shape))


def cache_features(tower: Tower, table: PictureTable, views: int, bound_gib: float) -> CachedFeatures | None:
    """Run every picture through the tower that is not kept yet; None where the bound or the disk is too small.

    Raises:
        DeviceError: the cache folder cannot be written.
    """
    folder = cache_folder() / "features"
    store = FeatureCacheFile(
        folder / hashlib.sha256(tower.fingerprint.encode()).hexdigest()[:24], tower.patches, tower.width
    )
    names = [f"{digest}.{view}" for digest in table.hashes for view in range(1 + views)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One lock for all stores: making room drops others, which must not be those that a process is filling.
        with FileLock(folder / ".lock"):
            store.folder.mkdir(exist_ok=True)
            os.utime(store.folder)  # used now: others are dropped before it
            if not evict_for(store, names, int(bound_gib * 2**30)):
                log.info(
                    "features: %d pictures take %.1f GiB, over pictures.cache_gib or the disk; the tower runs live",
                    len(table),
                    len(names) * store.row_bytes / 2**30,
                )
                return None
            index = store.index()
            missing = [name for name in names if name not in index]
            index |= _fill(store, tower, table, names, missing, max(index.values(), default=-1) + 1)
    except OSError as error:
        raise DeviceError(
            f"{store.folder}: cannot be written ({error.strerror}); free space, or set TWINLENS_CACHE or "
            "pictures.cache_gib=0."
        ) from error
    log.info(
        "features: %d distinct pictures, %d now through the tower, %.1f MiB kept", len(table), len(missing),
        len(names) * store.row_bytes / 2**20,
    )  # fmt: skip
    rows = np.asarray([index[name] for name in names], np.int64).reshape(len(table), 1 + views)
    return CachedFeatures(store.mapped(), rows)


def _fill(
    store: FeatureCacheFile, tower: Tower, table: PictureTable, names: Sequence[str], missing: Sequence[str], row: int
) -> dict[str, int]:
    """Add what is missing from `row` on; where each of it lies."""
    place = {name: divmod(number, len(names) // len(table)) for number, name in enumerate(names)}
    added = {name: row + number for number, name in enumerate(missing)}

    def pixels(name: str) -> torch.Tensor:
        number, view = place[name]
        return view_pixels(tower, table.paths[number], table.hashes[number], view)

    with (
        ProgressBar("pictures", len(missing), shown=len(missing) > TOWER_BATCH) as counter,
        ThreadPoolExecutor() as pool,
    ):
        for group, opened in prefetch_groups(pool, pixels, missing):
            store.add(group, to_half(extract_features(tower, torch.stack(opened))), added[group[0]])
            counter.advance(len(group))
    return added


def prefetch_groups(
    pool: ThreadPoolExecutor, pixels: Callable[[str], torch.Tensor], names: Sequence[str]
) -> Iterator[tuple[Sequence[str], list[torch.Tensor]]]:
    """Names with their pixels, group after group; the next groups are opened while the tower sees one."""
    groups = [names[start : start + TOWER_BATCH] for start in range(0, len(names), TOWER_BATCH)]
    opening = deque(([pool.submit(pixels, name) for name in group]) for group in groups[:PREFETCH_GROUPS])
    for number, group in enumerate(groups):
        yield group, [each.result() for each in opening.popleft()]
        if number + PREFETCH_GROUPS < len(groups):
            opening.append([pool.submit(pixels, name) for name in groups[number + PREFETCH_GROUPS]])


def evict_for(store: FeatureCacheFile, names: Sequence[str], bound: int) -> bool:
    """See to it that `names` fit beside what is kept, dropping the stores unused for longest, then this one's rows."""
    index = store.index()
    missing = sum(name not in index for name in names) * store.row_bytes
    if len(names) * store.row_bytes > bound:
        return False
    others = [folder for folder in store.folder.parent.iterdir() if folder.is_dir() and folder != store.folder]
    others.sort(key=lambda folder: folder.stat().st_mtime)

    def kept() -> int:
        return sum(file.stat().st_size for file in store.folder.parent.glob("*/features.f16"))

    while others and kept() + missing > bound:
        shutil.rmtree(others.pop(0))
    if kept() + missing > bound:
        shutil.rmtree(store.folder)
        store.folder.mkdir()
        missing = len(names) * store.row_bytes
    return shutil.disk_usage(store.folder.parent).free > missing
