"""`twinlens data scenes` from the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

NOUNS = ("apple", "ball", "cat", "dog", "egg", "fox", "goat", "hat")


def scenes(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twinlens", "data", "scenes", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "emoji").mkdir()
    for name in NOUNS:
        Image.new("RGBA", (60, 60), "red").save(tmp_path / "emoji" / f"{name}.png")
    lines = [f"  {name}: {{pictures: [{name}]}}" for name in NOUNS]
    (tmp_path / "nouns.yaml").write_text("\n".join(["known:", *lines]))
    return tmp_path


def test_rows_probes_and_facts(folder: Path) -> None:
    given = ("--emoji", "emoji", "--nouns", "nouns.yaml", "--count", "60")
    told = scenes(folder, "s.jsonl", *given, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["rows"] == 60
    assert len(list((folder / "s").glob("*.jpg"))) == 60
    told = scenes(folder, "p", *given, "--probes")
    assert told.returncode == 0 and "places.yaml: 60 probes on 60 scenes" in told.stdout
    told = scenes(folder, "f.yaml", *given, "--facts")
    assert told.returncode == 0 and "next: twinlens data image-qa f.yaml f.jsonl" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--emoji", "nowhere"), "--emoji nowhere: no such folder"),
        (("--emoji", "emoji", "--objects", "unseen"), "--objects unseen"),
        (("--emoji", "emoji", "--probes", "--facts"), "give one of them"),
        (("--emoji", "emoji", "--count", "0"), "--count 0"),
    ],
)
def test_invalid_options_are_refused_in_one_sentence(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    told = scenes(folder, "s.jsonl", "--nouns", "nouns.yaml", *arguments)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("error: ") and said in told.stderr and len(told.stderr.splitlines()) == 1
