"""The documents are correct: map, references, commands and links."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer
from paths import ROOT

from twinlens.cli.app import app

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TASKS = sorted((ROOT / "configs").glob("*/*.yaml"))
GENERATED = ROOT / "docs" / "reference"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_documents_are_up_to_date() -> None:
    for path, text in generator().documents().items():
        written = path.read_text(encoding="utf-8").splitlines()
        missing = [line for line in text.splitlines() if line not in written]
        over = [line for line in written if line not in text.splitlines()]
        assert written == text.splitlines(), (
            f"{path.relative_to(ROOT)}: run `python docs/generate.py`; missing {missing}, too much {over}"
        )


def test_every_package_is_in_the_map() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = [init.parent.relative_to(ROOT).as_posix() for init in ROOT.glob("*/**/__init__.py")]
    packages = [name for name in packages if not name.startswith((".", "build", "dist"))]
    assert [name for name in packages if f"[`{name}/`]" not in text] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_link_targets_exist(document: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    lost = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert lost == []


def commands() -> Iterator[tuple[str, str, bool]]:
    """Each documented command: its file, the command, and whether it is a full line."""
    for document in DOCUMENTS:
        if GENERATED in document.parents or document == ROOT / "docs" / "map.md":
            continue
        text = re.sub(r"(?s)<!-- map.*?end of the map -->", "", document.read_text(encoding="utf-8"))
        where = document.relative_to(ROOT).as_posix()
        for block in re.findall(r"(?ms)^```\w*\n(.*?)^```", text):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip().startswith("twinlens "):
                    yield where, line.strip(), True
        for span in re.findall(
            r"`((?:twinlens |torchrun [^`]*twinlens )[^`]+)`", re.sub(r"(?ms)^```.*?^```", "", text)
        ):
            yield where, "twinlens " + span.split("twinlens ", 1)[1], False
    for task in TASKS:
        for line in re.findall(r"(?m)^# +(twinlens .*)$", task.read_text(encoding="utf-8")):
            yield task.relative_to(ROOT).as_posix(), line, True


@pytest.mark.parametrize(("where", "line", "whole"), list(commands()), ids=str)
def test_documented_commands_parse(where: str, line: str, whole: bool) -> None:
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(app)
    path = "twinlens"
    while inner := getattr(command, "commands", None):
        if not words and not whole:
            return
        assert words, f"{where}: {line}: the verb is missing"
        assert words[0] in inner, f"{where}: {line}: there is no verb {path} {words[0]}"
        path, command, words = f"{path} {words[0]}", inner[words[0]], words[1:]
    if not words and not whole:
        return  # the text only mentions the verb
    try:
        command.make_context(path, words)
    except Exception as error:
        pytest.fail(f"{where}: {line}: {error}")
