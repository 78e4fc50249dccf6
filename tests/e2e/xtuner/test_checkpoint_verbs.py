"""Errors of `train --engine xtuner`: XTuner is missing, or cannot train the task."""

import json
from pathlib import Path

import pytest

from twinlens.xtuner.engine.environment import FOLDER, MARKER

ROW = '{"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]}\n'
SEEN = (
    '{"messages": [{"role": "user", "content": "<image>\\nHi?"}, {"role": "assistant", "content": "Hello."}],'
    ' "images": ["a.png"]}\n'
)


@pytest.fixture
def task(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text task, and an environment that is marked as complete."""
    (tmp_path / "rows.jsonl").write_text(ROW)
    (tmp_path / "task.yaml").write_text(f"model: {tiny_model}\ndata: {{files: [rows.jsonl]}}\noptim: {{steps: 1}}\n")
    (tmp_path / "xtuner").mkdir()
    (tmp_path / "xtuner" / MARKER).write_text(json.dumps({"bytes": 1}))
    monkeypatch.setenv(FOLDER, str(tmp_path / "xtuner"))
    return tmp_path / "task.yaml"


def test_without_xtuner_the_error_names_the_install_command(task, refused, monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "nowhere"))
    assert "run `twinlens xtuner install`" in refused("train", task, "--engine", "xtuner")


@pytest.mark.parametrize("other", [["--deepspeed", "zero2"], ["--resume", "run"]])
def test_unsupported_options(task, refused, other):
    words = [task] if other[0] == "--deepspeed" else []
    assert "supports neither" in refused("train", *words, *other, "--engine", "xtuner")


def test_an_unsupported_tower(task, refused, tmp_path, tiny_model):
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "seen.jsonl").write_text(SEEN)
    task.write_text(f"model: {tiny_model}\ntower: embedded\ndata: {{files: [seen.jsonl]}}\noptim: {{steps: 1}}\n")
    assert "XTuner supports CLIP towers" in refused("train", task, "--engine", "xtuner")
    assert not (tmp_path / "work_dirs").exists(), "no run was created"


def test_several_processes(task, refused, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one device" in refused("train", task, "--engine", "xtuner")
