"""Runs of the image path, made and not trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_sighted import make_finished_run, make_pictures, make_towers

from tuning.run_dir import RunDir


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a tiny CLIP and a tiny SigLIP."""
    return make_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture
def make_run(tiny_model: Path, towers: dict[str, Path], tmp_path: Path) -> Callable[..., RunDir]:
    """Writes a finished run below the test's folder."""

    def make(tower: str = "clip", tower_lora: bool = False, model: Path = tiny_model, **changes: object) -> RunDir:
        return make_finished_run(tmp_path / "run", model, str(towers.get(tower, tower)), tower_lora, **changes)

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """The files of three pictures."""
    return make_pictures(tmp_path)
