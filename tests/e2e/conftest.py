"""Running the command line as a person does, where it must refuse."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llm.loading
import llm.merge
import llm.recipe
import twinlens.targets
import vlm.loading
import vlm.recipe
from twinlens.cli.app import run

Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Runs the command line in a folder of its own; its exit status must be 2, and what it says is returned."""

    def no_weights(*_: object, **__: object) -> None:
        raise AssertionError("weights were loaded before the fault was found")

    for module in (llm.loading, llm.recipe, llm.merge, twinlens.targets, vlm.recipe):
        monkeypatch.setattr(module, "load_model", no_weights)
    monkeypatch.setattr(vlm.loading, "load_tower", no_weights)
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["twinlens", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            run()
        said = capsys.readouterr().err
        assert left.value.code == 2, said
        assert "Traceback" not in said
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")] or [said]
        assert sentence.rstrip().endswith((".", "`", ")")), sentence
        return sentence

    return call
