"""Feature cache: the features of a frozen tower in a memory-mapped file on disk.

Pictures are identified by their bytes, cache files by the tower's weights and preprocessing.

Shapes: I pictures, P patches, V width of the tower.
"""

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import nn

from tuning.errors import DeviceError
from tuning.paths import cache_folder
from tuning.progress import ProgressBar
from tuning.run_dir import read_jsonl
from vlm.features import PictureTable, draw_views, extract_features, to_half, view_pixels
from vlm.towers.tower import Tower

log = logging.getLogger("twinlens")
TOWER_BATCH = 16  # pictures in one forward pass of the tower
PREFETCH_GROUPS = 4  # batches of pictures that are opened in advance


class CachedFeatures(nn.Module):
    """Features from a memory-mapped file.

    Args:
        features: float16[rows, P, V].
        rows: int64[pictures, 1 + views], the row of each view; the first is the picture itself.
    """

    def __init__(self, features: np.ndarray, rows: np.ndarray) -> None:
        super().__init__()
        self._features, self._rows = features, rows

    def forward(self, pictures: Sequence[int]) -> torch.Tensor:
        """I numbers -> float16[I, P, V]; in training, a random view of each picture."""
        views = draw_views(len(pictures), self._rows.shape[1] - 1 if self.training else 0)
        return torch.from_numpy(self._features[self._rows[list(pictures), views]])


class FeatureCacheFile:
    """The cached features of one tower: `features.f16`, float16[rows, P, V], and `index.jsonl`, a name for each row.

    Rows are only appended, and a name is added after its row is on disk, so that a killed run leaves a valid cache.
    """

    def __init__(self, folder: Path, patches: int, width: int) -> None:
        self.folder = folder
        self._shape = patches, width
        self.row_bytes = patches * width * 2
        self._features_file, self._index_file = folder / "features.f16", folder / "index.jsonl"

    def index(self) -> dict[str, int]:
        """The row of each cached view by name."""
        return {entry["name"]: entry["row"] for entry in read_jsonl(self._index_file)}

    def add(self, names: Sequence[str], features: torch.Tensor, first: int) -> None:
        """Write float16[I, P, V] as the rows from `first`."""
        self._features_file.touch()
        with self._features_file.open("r+b") as stream:
            stream.seek(first * self.row_bytes)
            stream.write(features.cpu().contiguous().numpy().tobytes())
        with self._index_file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"name": name, "row": first + i}) + "\n" for i, name in enumerate(names))

    def mapped(self) -> np.ndarray:
        """float16[rows, P, V], read from disk when used."""
        rows = self._features_file.stat().st_size // self.row_bytes
        return np.memmap(self._features_file, np.float16, "r", shape=(rows, *self._shape))


def cache_features(tower: Tower, table: PictureTable, views: int, limit_gib: float) -> CachedFeatures | None:
    """Run the tower on all pictures that are not cached; None if the limit or the disk is too small.

    Raises:
        DeviceError: the cache folder cannot be written.
    """
    folder = cache_folder() / "features"
    name = hashlib.sha256(tower.fingerprint.encode()).hexdigest()[:24]
    file = FeatureCacheFile(folder / name, tower.patches, tower.width)
    names = {
        f"{digest}.{view}": (number, view) for number, digest in enumerate(table.hashes) for view in range(1 + views)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # One lock for all cache files, so that eviction does not remove a file that another process fills.
        with FileLock(folder / ".lock"):
            file.folder.mkdir(exist_ok=True)
            os.utime(file.folder)  # the time of the last use, for eviction
            if not evict_for(file, list(names), int(limit_gib * 2**30)):
                log.info(
                    "features: %d pictures need %.1f GiB, more than pictures.cache_gib or the disk; not cached",
                    len(table), len(names) * file.row_bytes / 2**30,
                )  # fmt: skip
                return None
            index = file.index()
            missing = {name: view for name, view in names.items() if name not in index}
            index |= _fill(file, tower, table, missing, max(index.values(), default=-1) + 1)
    except OSError as error:
        raise DeviceError(
            f"{file.folder}: cannot be written ({error.strerror}); free space, or set TWINLENS_CACHE or "
            "pictures.cache_gib=0."
        ) from error
    log.info(
        "features: %d distinct pictures, %d new views in the cache, %.1f MiB cached",
        len(table), len(missing), len(names) * file.row_bytes / 2**20,
    )  # fmt: skip
    rows = np.asarray([index[name] for name in names], np.int64).reshape(len(table), 1 + views)
    return CachedFeatures(file.mapped(), rows)


def _fill(
    file: FeatureCacheFile, tower: Tower, table: PictureTable, missing: Mapping[str, tuple[int, int]], row: int
) -> dict[str, int]:
    """Compute missing features, given as picture number and view by name, and append them from `row`; their rows."""
    added = {name: row + i for i, name in enumerate(missing)}

    def pixels(name: str) -> torch.Tensor:
        return view_pixels(tower, table, *missing[name])

    with ProgressBar("pictures", len(missing), shown=len(missing) > TOWER_BATCH) as bar, ThreadPoolExecutor() as pool:
        for group, opened in prefetch_groups(pool, pixels, list(missing)):
            file.add(group, to_half(extract_features(tower, torch.stack(opened))), added[group[0]])
            bar.advance(len(group))
    return added


def prefetch_groups(
    pool: ThreadPoolExecutor, pixels: Callable[[str], torch.Tensor], names: Sequence[str]
) -> Iterator[tuple[Sequence[str], list[torch.Tensor]]]:
    """Names and pixels in batches; the next batches are opened while the tower runs."""
    groups = [names[start : start + TOWER_BATCH] for start in range(0, len(names), TOWER_BATCH)]
    pending = deque(([pool.submit(pixels, name) for name in group]) for group in groups[:PREFETCH_GROUPS])
    for i, group in enumerate(groups):
        yield group, [each.result() for each in pending.popleft()]
        if i + PREFETCH_GROUPS < len(groups):
            pending.append([pool.submit(pixels, name) for name in groups[i + PREFETCH_GROUPS]])


def evict_for(file: FeatureCacheFile, names: Sequence[str], limit: int) -> bool:
    """Remove the least recently used cache files, then this one's rows, until `names` fit; False if they cannot."""
    if len(names) * file.row_bytes > limit:
        return False

    def cached() -> int:
        return sum(each.stat().st_size for each in file.folder.parent.glob("*/features.f16"))

    def missing() -> int:
        index = file.index()
        return sum(name not in index for name in names) * file.row_bytes

    others = [folder for folder in file.folder.parent.iterdir() if folder.is_dir() and folder != file.folder]
    for folder in [*sorted(others, key=lambda folder: folder.stat().st_mtime), file.folder]:
        if cached() + missing() > limit:
            shutil.rmtree(folder)
    file.folder.mkdir(exist_ok=True)
    return shutil.disk_usage(file.folder.parent).free > missing()
