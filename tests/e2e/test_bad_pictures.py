"""Wrong pictures, towers or projectors: exit 2 and one sentence with the position, before weights load."""

import json
import re
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from struct import pack

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from vlm.projector import new_projector, save_projector

Refused = Callable[..., str]


def bomb(path: Path) -> None:
    """A PNG of a few kilobytes with 30000 x 30000 pixels in its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return pack(">I", len(body)) + kind + body + pack(">I", zlib.crc32(kind + body))

    header = pack(">IIBBBBB", 30000, 30000, 1, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Correct and broken pictures, and one picture outside of their folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    picture = Image.effect_noise((300, 200), 60).convert("RGB")
    picture.save(folder / "good.jpg", quality=95)
    picture.save(folder / "good.png")
    picture.save(tmp_path / "outside.jpg")
    whole = (folder / "good.jpg").read_bytes()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:400])
    (folder / "words.jpg").write_text("a letter to a friend")
    (folder / "empty.png").write_bytes(b"")
    (folder / "folder.png").mkdir()
    bomb(folder / "bomb.png")
    return folder


def row(*images: str, text: str | None = None) -> str:
    marks = "<image>\n" * len(images) if text is None else text
    turns = [{"role": "user", "content": f"{marks}what colour?"}, {"role": "assistant", "content": "red."}]
    return json.dumps({"messages": turns, "images": list(images)}) + "\n"


@pytest.fixture
def task(folder: Path, tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a correct task with some lines replaced, and its data: a correct row, then the given rows."""

    def writer(*rows: str, **changes: str) -> Path:
        (folder / "rows.jsonl").write_text("".join([row("good.jpg"), *rows]), encoding="utf-8")
        (folder / "probes.yaml").write_text("- {ask: what?, group: picture, expect: [red], image: good.png}\n")
        lines = {
            "model": str(tiny_model), "tower": "embedded", "data": f"{{files: ['{folder}/rows.jsonl']}}",
            "optim": "{steps: 2}", "evaluation": f"{{probes: ['{folder}/probes.yaml']}}",
        } | changes  # fmt: skip
        (tmp_path / "task.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return tmp_path / "task.yaml"

    return writer


ROWS = {
    "missing": (row("gone.jpg"), r"line 2: gone\.jpg: no such picture"),
    "text named jpg": (row("words.jpg"), r"line 2: .*words\.jpg is not a readable picture"),
    "empty file": (row("empty.png"), r"line 2: .*empty\.png is not a readable picture"),
    "truncated JPEG": (row("truncated.jpg"), r"line 2: .*truncated\.jpg is broken"),
    "cut PNG": (row("cut.png"), r"line 2: .*cut\.png is broken"),
    "bomb": (row("bomb.png"), r"line 2: .*bomb\.png .*pixels"),
    "a folder": (row("folder.png"), r"line 2: folder\.png: no such picture"),
    "out of the folder": (row("../outside.jpg"), r"line 2: \.\./outside\.jpg leads out of"),
    "out by a detour": (row("good.jpg", "x/../../outside.jpg"), r"line 2: x/\.\./\.\./outside\.jpg leads out of"),
    "absolute": (row("/etc/hostname"), r"line 2: /etc/hostname leads out of"),
    "two marks for one picture": (row("good.jpg", text="<image>\n<image>\n"), r"line 2: .*2 <image>.* 1 pictures"),
    "no mark for a picture": (row("good.jpg", text=""), r"line 2: .*0 <image>.* 1 pictures"),
    "a mark without a picture": (row(text="<image>\n"), r"line 2: .*1 <image>.* 0 pictures"),
    "a number for a path": ('{"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", '
                            '"content": "r"}], "images": [7]}\n', r"line 2: images is a number"),
}  # fmt: skip


@pytest.mark.parametrize("fault", ROWS)
def test_bad_rows(refused: Refused, task: Callable[..., Path], fault: str) -> None:
    bad, sentence = ROWS[fault]
    assert re.search(sentence, refused("train", task(bad)))


def test_a_broken_picture_of_a_probe_is_named(refused: Refused, task: Callable[..., Path], folder: Path) -> None:
    file = task()
    (folder / "probes.yaml").write_text("- {ask: 'what is it?', group: picture, expect: [red], image: words.jpg}\n")
    assert "what is it?" in refused("train", file)
    (folder / "probes.yaml").write_text("- {ask: 'what is it?', group: picture, expect: [red], image: gone.jpg}\n")
    assert "line 1: image:" in refused("train", file)


def test_pictures_of_the_rehearsal_are_checked(refused: Refused, task: Callable[..., Path], folder: Path) -> None:
    (folder / "others.jsonl").write_text(row("good.png") + row("truncated.jpg"))
    said = refused("train", task(rehearsal=f"{{files: ['{folder}/others.jsonl']}}"))
    assert "others.jsonl, line 2" in said


TASKS = {
    "no such tower": ({"tower": "clip"}, "tower: clip"),
    "a language model for a tower": ({"tower": "{model}"}, "is not supported as a vision tower"),
    "open_clip with the wrong activation": ({"tower": "open_clip:ViT-L-14-336/openai"}, "quickgelu"),
    "no such open_clip model": ({"tower": "open_clip:ViT-L-15/openai"}, "ViT-L-1"),
    "an adapter on a convolutional tower": ({"tower_lora": "{rank: 4}"}, "tower_lora: embedded cannot be trained"),
    "an adapter on the tower in stage align": ({"stage": "align", "tower_lora": "{rank: 4}"}, "stage align"),
    "no such stage": ({"stage": "pretrain"}, "line 6: stage"),
    "no such start": ({"start": "gone.pth"}, "start: gone.pth"),
    "negative cache": ({"pictures": "{cache_gib: -1}"}, "pictures.cache_gib"),
    "no such folder of pictures": ({"pictures": "{folder: gone}"}, "gone; fix the path or add the file"),
    "rate zero": ({"rates": "{projector: 0}"}, "rates.projector"),
}


def test_xtuner_packing_of_pictures_is_refused(refused: Refused, task: Callable[..., Path]) -> None:
    assert "set data.pack: false" in refused("train", task(), "data.packing=xtuner", "data.pack=true")


@pytest.mark.parametrize("fault", TASKS)
def test_bad_tasks(refused: Refused, task: Callable[..., Path], tiny_model: Path, fault: str) -> None:
    changes, sentence = TASKS[fault]
    changes = {key: value.replace("{model}", str(tiny_model)) for key, value in changes.items()}
    assert sentence in refused("train", task(**changes))


def test_a_projector_of_other_shapes_is_refused(refused: Refused, task: Callable[..., Path], tmp_path: Path) -> None:
    save_projector(new_projector(1024, 2048, 0), tmp_path / "other")
    said = refused("train", task(start=str(tmp_path / "other" / "projector.safetensors")))
    assert "1024" in said
    assert "846" in said


def test_a_file_without_a_projector_is_refused(refused: Refused, task: Callable[..., Path], tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "else.safetensors")
    assert "else.safetensors" in refused("train", task(start=str(tmp_path / "else.safetensors")))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    assert "broken.pth" in refused("train", task(start=str(tmp_path / "broken.pth")))


def test_chat_refuses_pictures_for_a_text_model(refused: Refused, folder: Path, tiny_model: Path) -> None:
    assert "words.jpg is not a readable picture" in refused("chat", tiny_model, "--image", folder / "words.jpg")
    assert "has no vision tower" in refused("chat", tiny_model, "--image", folder / "good.jpg")


def test_a_correct_task_passes(task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The tasks above are refused only because of their error."""
    from twinlens.checks import check_data
    from twinlens.task_files import read_task

    found = check_data(read_task(task(row("good.png"), row("good.jpg", "good.png")))[0])
    assert "pictures: 2 distinct files, all of them readable" in found
    shutil.rmtree(tmp_path / "data")
