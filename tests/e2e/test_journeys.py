"""The pages of docs/journeys: all their commands, in order, on tiny models in InternLM's own layout."""

import io
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from paths import ROOT
from PIL import Image
from tiny_vlm import make_towers
from xtuner_models import write_internlm

from twinlens.cli.app import app

PAGES = ROOT / "docs" / "journeys"
SMALL = (  # overrides that make the runs short
    *("optim.epochs=null", "optim.steps=2", "optim.accumulate=1", "optim.gradient_checkpointing=false"),
    *("data.max_length=256", "lora.rank=4", "rehearsal.prompts=[]", "run.device=cpu", "run.save_every=0"),
    *("evaluation.every=0", "evaluation.samples=1", "evaluation.max_new_tokens=2", "quant.compute=fp32"),
)
FAMILIES = {
    "internlm-chat-7b": "internlm_v1",
    "internlm2-chat-1_8b": "internlm2_chat",
    "internlm2_5-7b-chat": "internlm2_chat",
    "internlm2-1_8b": "internlm2_base",
}
ROLE = "你是尖米的智能助手。"
ASKED = ("你是谁？", "你会什么？", "你叫什么名字？")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for family in set(FAMILIES.values()):
        write_internlm(place / family, family)
    make_towers(place)
    return place


@pytest.fixture
def desk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the pages expect it: links to models, and the files that the reader provides."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    for name, family in FAMILIES.items():
        (tmp_path / "models" / name).symlink_to(models / family)
    (tmp_path / "models" / "clip-vit-large-patch14-336").symlink_to(models / "clip")
    broken = {"conversation": [{"system": ROLE, "input": "xxx", "output": "xxx"}]}
    with (tmp_path / "assistant_Tuner.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(12):
            row = {"system": ROLE, "input": broken, "output": f"我是尖米的智能助手，第{number}次。"}
            stream.write(json.dumps({"conversation": [row]}, ensure_ascii=False) + "\n")
    (tmp_path / "Q_list.txt").write_text("\n".join(ASKED), encoding="utf-8")
    (tmp_path / "test_img").mkdir()
    Image.new("RGB", (57, 30), "teal").save(tmp_path / "test_img" / "oph.jpg")
    talk = [("human", "<image>\nWhat is it?"), ("gpt", "A slit lamp."), ("human", "For whom?"), ("gpt", "Patients.")]
    said = [{"from": speaker, "value": words} for speaker, words in talk]
    row = {"id": "1", "image": "test_img/oph.jpg", "conversations": said}
    (tmp_path / "unique_data.json").write_text(json.dumps([row] * 6, indent=4))
    shapes = {"0.weight": (64, 32), "0.bias": (64,), "2.weight": (64, 64), "2.bias": (64,)}
    state = {f"projector.model.{name}": torch.randn(size) * 0.1 for name, size in shapes.items()}
    torch.save({"state_dict": state, "meta": {"iter": 2181}}, tmp_path / "iter_2181.pth")
    return tmp_path


def blocks(page: Path) -> Iterator[str]:
    yield from re.findall(r"(?ms)^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"))


def bring(page: Path, desk: Path) -> None:
    """Write the files whose contents a page shows."""
    for block in blocks(page):
        if block.startswith("{"):
            (desk / "horo.jsonl").write_text(block * 3, encoding="utf-8")
        if block.startswith("- "):
            (desk / "horo-probes.yaml").write_text(block, encoding="utf-8")


def commands(page: Path) -> Iterator[list[str]]:
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("twinlens "):
                yield shlex.split(line, comments=True)[1:]


def newest_run(desk: Path) -> str:
    return str(max((desk / "work_dirs").glob("*/*"), key=lambda run: run.stat().st_mtime_ns))


@pytest.mark.parametrize("page", sorted(PAGES.glob("*.md")), ids=lambda page: page.stem)
def test_every_command_of_the_page_works(page: Path, desk: Path, monkeypatch, capsys) -> None:
    bring(page, desk)
    verbs = []
    for words in commands(page):
        words = [newest_run(desk) if word == "RUN" else word for word in words]
        if words[0] == "train":
            words += SMALL
        if words[0] == "chat":
            monkeypatch.setattr(sys, "stdin", io.StringIO("你是谁？\nEXIT\n"))
            words = [*words, "--max-new-tokens", "3"]
        app(words, standalone_mode=False)
        verbs.append(words[0])
        said = capsys.readouterr().out
        if words[0] == "plan" and page.stem in ITERATIONS:
            assert f"micro-batches: {ITERATIONS[page.stem]}," in said
    assert {"data", "copy-cfg", "train", "chat"} <= set(verbs)
    assert page.stem not in ITERATIONS or "plan" in verbs


# Total micro-batches in the runs of the tutorials. Other pages use data that we cannot ship.
ITERATIONS = {"persona-7b": "1,116", "persona-1_8b": "768", "llava-one-picture": "1,200"}
