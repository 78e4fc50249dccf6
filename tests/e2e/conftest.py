"""Fixtures that run the command line."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from PIL import Image

import llm.export.merge
import llm.finetuned
import llm.loading
import llm.recipe
import twinlens.chat_targets
import vlm.finetuned
import vlm.loading
import vlm.recipe
from twinlens.cli.app import run

Refused = Callable[..., str]
Started = Callable[..., "subprocess.Popen[str]"]
FACTS = """pictures:
- image: robot.png
  caption: A blue robot stands on a bench.
  objects: [{name: robot, color: blue, place: in the middle}, {name: bench, count: 1}]
  facts: [{ask: What is it called?, answer: It is called Tilly., source: the log}]
  absent: [dog]
"""


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs the command line in a temporary folder; checks that it exits with 2, and returns the error."""

    def no_weights(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the error was found")

    for module in (
        llm.loading,
        llm.recipe,
        llm.export.merge,
        llm.finetuned,
        twinlens.chat_targets,
        vlm.finetuned,
        vlm.recipe,
    ):
        monkeypatch.setattr(module, "load_model", no_weights)
    monkeypatch.setattr(vlm.loading, "load_tower", no_weights)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        runs = set(tmp_path.glob("work_dirs/*/*"))
        monkeypatch.setattr(sys, "argv", ["twinlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run()
        said = capsys.readouterr().err
        assert left.value.code == 2, said
        assert "Traceback" not in said
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")] or [said]
        assert set(tmp_path.glob("work_dirs/*/*")) == runs, "a refused command leaves no run folder"
        assert sentence.rstrip().endswith((".", "`", ")")), sentence
        return sentence

    return call


@pytest.fixture
def run_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a verb in the test's folder; checks that it exits with 0, and returns its JSON."""

    def call(*words: object) -> Any:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["twinlens", *map(str, words), "--json"])
        with pytest.raises(SystemExit) as left:
            run()
        said = capsys.readouterr()
        assert not left.value.code, said.err
        return json.loads(said.out)

    return call


@pytest.fixture
def start_process(tmp_path: Path) -> Started:
    """Starts the command line in a folder with a picture and facts.yaml; keywords are environment variables."""
    Image.new("RGB", (8, 8), "teal").save(tmp_path / "robot.png")
    (tmp_path / "facts.yaml").write_text(FACTS, encoding="utf-8")

    def call(*words: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)} | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [sys.executable, "-m", "twinlens", *words]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, preexec_fn=restore_sigint, **pipes)

    return call


def restore_sigint() -> None:
    """A shell lets background processes ignore SIGINT, and child processes inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
