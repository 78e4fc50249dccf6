"""Finished image runs, made without training."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_vlm import make_finished_run, make_pictures, make_towers

from tuning.run_dir import RunDir


@pytest.fixture(scope="session")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a tiny CLIP and a tiny SigLIP."""
    return make_towers(tmp_path_factory.mktemp("towers"))


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Writes questions and answers as a dataset, and a file with one probe."""

    def write(pairs: Sequence[tuple[str, str]]) -> tuple[Path, Path]:
        data, probes = tmp_path / "rows.jsonl", tmp_path / "probes.yaml"
        rows = (
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
            for question, answer in pairs
        )
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        probes.write_text("- {ask: who are you?, group: persona, expect: [Lin]}\n", encoding="utf-8")
        return data, probes

    return write


@pytest.fixture
def make_run(tiny_model: Path, towers: dict[str, Path], tmp_path: Path) -> Callable[..., RunDir]:
    """Writes a finished run into the test's folder."""

    def make(tower: str = "clip", tower_lora: bool = False, model: Path = tiny_model, **changes: object) -> RunDir:
        return make_finished_run(tmp_path / "run", model, str(towers.get(tower, tower)), tower_lora, **changes)

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """The files of three pictures."""
    return make_pictures(tmp_path)
