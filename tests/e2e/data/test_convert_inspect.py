"""`twinlens data convert` and `twinlens data inspect` from the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import FIXTURES

from tuning.data.card import DatasetCard, file_sha256, read_card, write_card
from tuning.data.conversation import single_turn, to_jsonl
from tuning.data.formats import read_rows

BAD = FIXTURES / "bad_rows"


def twinlens(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "twinlens", "data", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "100", "FORCE_COLOR": "1"},
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def nested_row(answer: str) -> dict[str, Any]:
    lost = {"conversation": [{"system": "Be kind.", "input": "xxx", "output": "xxx"}]}
    return {"conversation": [{"system": "Be kind.", "input": lost, "output": answer}]}


def test_convert_round_trip_keeps_rows_and_card(tmp_path: Path) -> None:
    source = tmp_path / "persona.jsonl"
    source.write_text(
        "".join(to_jsonl([single_turn("Who are you?", "I am Lumo.")] * 3 + [single_turn("你是谁?", "我是 Lumo。")]))
    )
    sha = file_sha256(source)
    write_card(source, DatasetCard("by hand", 4, 2, sha, 7, "Lumo", "Ann", "a model", ("en", "zh"), ("Lumo",)))
    done = twinlens(tmp_path, "convert", "persona.jsonl", "sub/x.parquet", "--to", "xtuner", "--json")
    result = json.loads(done.stdout)
    assert (result["rows"], result["distinct"]) == (4, 2)
    out = tmp_path / "sub" / "x.parquet"
    card = read_card(out)
    assert card is not None and card.sha256 == file_sha256(out) == result["sha256"]
    assert (card.name, card.owner, card.seed, card.markers, card.sources) == (
        "Lumo",
        "Ann",
        7,
        ("Lumo",),
        (("persona.jsonl", sha),),
    )
    assert card.made_by == "twinlens data convert persona.jsonl sub/x.parquet --to xtuner"
    assert "next: twinlens data inspect" in twinlens(tmp_path, "convert", "sub/x.parquet", "back.json").stdout
    back, straight = ([row.conversation for row in read_rows(path)] for path in (tmp_path / "back.json", source))
    assert back == straight
    assert file_sha256(source) == sha


@pytest.mark.parametrize(
    "questions", ["Who?\n\nWhat?\n", '["Who?", "What?"]', '"Who?"\n"What?"\n'], ids=["text", "list", "lines"]
)
def test_nested_rows_get_their_questions_back(tmp_path: Path, questions: str) -> None:
    rows = [nested_row(f"answer {index}") for index in range(4)]
    (tmp_path / "broken.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "questions").write_text(questions)
    done = twinlens(
        tmp_path, "convert", "broken.jsonl", "fixed.jsonl", "--to", "xtuner", "--repair-nested", "questions"
    )
    assert "4 rows got their question back" in done.stdout and "check the list" not in done.stdout
    fixed = [json.loads(line)["conversation"] for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert fixed == [
        [{"system": "Be kind.", "input": question, "output": f"answer {index}", "output_with_loss": True}]
        for index, question in enumerate(["Who?", "What?", "Who?", "What?"])
    ]


def test_picture_paths_are_rewritten_for_the_new_folder(tmp_path: Path) -> None:
    (tmp_path / "data" / "img").mkdir(parents=True)
    (tmp_path / "data" / "img" / "a.jpg").touch()
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    rows = [{"id": 1, "image": image, "conversations": turns} for image in ("img/a.jpg", "coco/b.jpg")]
    (tmp_path / "data" / "llava.json").write_text(json.dumps(rows))
    done = twinlens(tmp_path, "convert", "data/llava.json", "other/out.jsonl", "--json")
    assert json.loads(done.stdout)["moved"] == 1
    images = [row.conversation.images for row in read_rows(tmp_path / "other" / "out.jsonl")]
    assert images == [("../data/img/a.jpg",), ("coco/b.jpg",)]


def test_convert_errors(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(to_jsonl([single_turn("q", "a", system="s")])))
    (tmp_path / "link.json").symlink_to(source)
    (tmp_path / "none").touch()
    for words, reason in [
        (("a.jsonl", "a.jsonl"), "never overwritten"),
        (("a.jsonl", "link.json"), "never overwritten"),
        (("a.jsonl", "b.txt"), "add --container"),
        (("a.jsonl", "b.json", "--to", "llava"), "a.jsonl, line 1: llava rows cannot contain a system turn"),
        (("a.jsonl", "b.json", "--repair-nested", "none"), "none: has no questions"),
        (("a.jsonl", "a.jsonl/b.json"), "cannot be written"),
        ((str(BAD / "nested_input.jsonl"), "b.json"), "--repair-nested"),
    ]:
        done = twinlens(tmp_path, "convert", *words, code=2)
        assert reason in done.stderr and done.stderr.startswith("error: ") and not done.stdout
    assert len(list(tmp_path.iterdir())) == 3


def test_inspect_with_a_model(tmp_path: Path, tiny_model: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(to_jsonl([single_turn("Who are you?", "I am Lumo 😊.")] * 3)))
    done = twinlens(
        tmp_path, "inspect", "a.jsonl", "--model", str(tiny_model), "--system", "Be kind.", "--html", "a.html"
    )
    assert "3 (1 distinct, 2 copies)" in done.stdout
    assert "\x1b[1;32mI am Lumo 😊.<|im_end|>\x1b[0m" in done.stdout
    assert "<|im_start|>system" in done.stdout and "Be kind." in done.stdout
    page = (tmp_path / "a.html").read_text()
    assert "<mark>I am Lumo 😊.&lt;|im_end|&gt;</mark>" in page and "Be kind." in page


def test_inspect_without_a_model(tmp_path: Path) -> None:
    rows = [
        {"id": "x", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    ] * 2
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = json.loads(twinlens(tmp_path, "inspect", "a.jsonl", "--json", "--rows", "5").stdout)
    assert (result["schema"], result["container"], result["ignored"]) == ("messages", "jsonl", {"id": 2})
    assert result["census"]["distinct"] == 1 and len(result["rows"]) == 1
    assert result["census"]["lengths"]["unit"] == "characters"
    assert "ignored key 'id' (2 rows)" in twinlens(tmp_path, "inspect", "a.jsonl").stdout


def test_inspect_errors(tmp_path: Path) -> None:
    for words, reason in [
        ((str(BAD / "gbk.jsonl"), "--model", "nowhere"), "save the file as UTF-8"),
        (("missing.jsonl",), "missing.jsonl: cannot be read (No such file or directory)"),
        ((str(BAD / "mixed_formats.jsonl"), "--system", "s"), "add --model"),
    ]:
        done = twinlens(tmp_path, "inspect", *words, code=2)
        assert reason in done.stderr and done.stderr.count("\n") == 1 and not done.stdout
