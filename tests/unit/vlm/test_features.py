"""Features: cached equal live, one tower run for each distinct picture, limited disk space."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tuning.errors import DataError, DeviceError
from vlm.feature_cache import FeatureCacheFile, cache_features
from vlm.features import LiveFeatures, PictureTable, augment
from vlm.towers.registry import load_tower
from vlm.towers.tower import Tower


@pytest.fixture(scope="module")
def tower() -> Tower:
    return load_tower("embedded", torch.device("cpu"), torch.float32)


@pytest.fixture
def runs(tower: Tower) -> Iterator[list[int]]:
    """Number of pictures in each run of the tower."""
    counted: list[int] = []
    handle = tower.register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    yield counted
    handle.remove()


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[[int], list[Path]]:
    """Makes different pictures of noise."""

    def make(number: int) -> list[Path]:
        rng = np.random.default_rng(7)
        paths = [tmp_path / f"{index}.png" for index in range(number)]
        for path in paths:
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(path)
        return paths

    return make


def table_of(paths: list[Path]) -> PictureTable:
    table = PictureTable()
    for path in paths:
        table.number(path)
    return table


def test_the_tower_runs_once_for_a_picture_repeated_200_times(
    cache: Path, tower: Tower, runs: list[int], pictures: Callable[[int], list[Path]], tmp_path: Path
) -> None:
    (path,) = pictures(1)
    copy = tmp_path / "copy.png"
    copy.write_bytes(path.read_bytes())
    table = PictureTable()
    numbers = [table.number(path) for _ in range(200)] + [table.number(copy)]
    assert set(numbers) == {0}
    cached = cache_features(tower, table, 0, 1.0)
    assert cached is not None
    assert runs == [1]
    assert cached([0] * 5).shape == (5, tower.patches, tower.width)
    cache_features(tower, table, 0, 1.0)
    assert runs == [1], "the cache is used again"


def test_cached_features_equal_live_features(cache: Path, tower: Tower, pictures: Callable[[int], list[Path]]) -> None:
    table = table_of(pictures(3))
    cached, live = cache_features(tower, table, 2, 1.0), LiveFeatures(tower, table, 2)
    assert cached is not None
    order = [2, 0, 0, 1]
    assert torch.equal(cached.eval()(order), live.eval()(order))
    torch.manual_seed(3)
    drawn = cached.train()(order)
    torch.manual_seed(3)
    assert torch.equal(drawn, live.train()(order)), "the same random state draws the same views"
    assert not torch.equal(drawn, cached.eval()(order))


def test_live_features_run_once_for_each_distinct_picture(
    tower: Tower, runs: list[int], pictures: Callable[[int], list[Path]]
) -> None:
    LiveFeatures(tower, table_of(pictures(2)), 0).eval()([1, 0, 1, 1])
    assert runs == [2]


def test_an_interrupted_cache_is_completed(
    cache: Path, tower: Tower, runs: list[int], pictures: Callable[[int], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = pictures(20)
    add, calls = FeatureCacheFile.add, []

    def killed(*arguments: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(1)
        add(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(FeatureCacheFile, "add", killed)
        cache_features(tower, table_of(paths), 0, 1.0)
    assert runs == [16, 4]
    cached = cache_features(tower, table_of(paths), 0, 1.0)
    assert cached is not None
    assert runs == [16, 4, 4], "only the missing pictures"
    live = LiveFeatures(tower, table_of(paths), 0).eval()
    # Another batch size changes the rounding, by at most one fp16 step.
    assert torch.allclose(cached.eval()(range(20)).float(), live(range(20)).float(), rtol=1e-3, atol=1e-3)


def test_the_limit_evicts_old_caches_and_else_nothing_is_cached(
    cache: Path, tower: Tower, pictures: Callable[[int], list[Path]]
) -> None:
    old = cache / "features" / "of-another-tower"
    old.mkdir(parents=True)
    row = tower.patches * tower.width * 2
    (old / "features.f16").write_bytes(b"\0" * 8 * row)
    paths = pictures(4)
    assert cache_features(tower, table_of(paths), 0, 9 * row / 2**30) is not None
    assert not old.exists()
    assert cache_features(tower, table_of(paths), 0, 3 * row / 2**30) is None


def test_the_error_names_a_cache_that_cannot_be_written(
    tmp_path: Path, tower: Tower, pictures: Callable[[int], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(DeviceError, match="TWINLENS_CACHE"):
        cache_features(tower, table_of(pictures(1)), 0, 1.0)


def test_features_that_are_not_finite_are_refused(
    cache: Path, tower: Tower, pictures: Callable[[int], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "forward", lambda pixels: torch.full((len(pixels), 49, 8), 1e6))
    with pytest.raises(DataError, match="not finite"):
        cache_features(tower, table_of(pictures(1)), 0, 1.0)


def test_views_differ_slightly_and_depend_only_on_the_seed() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 120, 3), np.uint8))
    one, same, other = (augment(picture, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert all(0.74 <= part / whole <= 1 for part, whole in zip(one.size, picture.size, strict=True))
