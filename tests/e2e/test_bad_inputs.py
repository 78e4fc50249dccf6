"""Every user error: exit 2 and one sentence with the position and the fix, before any weights load."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import FIXTURES

BAD_DATA = sorted((FIXTURES / "bad_rows").iterdir())
GOOD_ROW = '{"messages": [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "Lin\'s."}]}\n'
GOOD_PROBES = "- {ask: who?, group: persona, expect: [Lin]}\n"

Refused = Callable[..., str]


@pytest.fixture
def task(tmp_path: Path, tiny_model: Path) -> Callable[..., Path]:
    """Writes a correct task file with some lines replaced."""

    def writer(**changes: str) -> Path:
        (tmp_path / "good.jsonl").write_text(GOOD_ROW, encoding="utf-8")
        (tmp_path / "probes.yaml").write_text(GOOD_PROBES, encoding="utf-8")
        lines = {"model": str(tiny_model), "data": "{files: [good.jsonl]}", "optim": "{steps: 2}"} | changes
        (tmp_path / "task.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items() if value))
        return tmp_path / "task.yaml"

    return writer


@pytest.mark.parametrize("file", BAD_DATA, ids=lambda file: file.name)
def test_bad_data(refused: Refused, task: Callable[..., Path], file: Path) -> None:
    assert file.name in refused("train", task(data=f"{{files: ['{file}']}}"))


CONFIGS = {
    "no such key": ({"optimizer": "{steps: 2}"}, r"task\.yaml, line \d+: optimizer: no such key"),
    "XTuner's name for a key": ({"optim": "{steps: 2, batch_size: 1}"}, r"optim\.batch_size: .*optim\.micro_batch"),
    "no length": ({"optim": "{}"}, r"optim\.steps or optim\.epochs"),
    "two lengths": ({"optim": "{steps: 1, epochs: 1}"}, r"optim\.steps or optim\.epochs"),
    "negative rate": ({"optim": "{steps: 1, learning_rate: -1}"}, r"optim\.learning_rate: .*greater than 0"),
    "words for a number": ({"optim": "{steps: many}"}, r"optim\.steps: .*many"),
    "three bits": ({"quant": "{bits: 3}"}, r"quant\.bits"),
    "no data": ({"data": ""}, r"data: is missing"),
    "no model": ({"model": ""}, r"model: is missing"),
    "data not there": ({"data": "{files: [gone.jsonl]}"}, r"gone\.jsonl"),
    "data is a folder": ({"data": "{files: [.]}"}, r"folder|directory"),
    "probes not there": ({"evaluation": "{probes: [gone.yaml]}"}, r"gone\.yaml"),
    "rehearsal not there": ({"rehearsal": "{prompts: [gone.yaml]}"}, r"rehearsal\.prompts: .*gone\.yaml"),
    "rehearsal is no list": ({"rehearsal": "{prompts: [task.yaml]}"}, r"not a list of prompts"),
    "model not there": ({"model": "./nothing/here"}, r"model: \./nothing/here: no such folder"),
    "model is a file": ({"model": "good.jsonl"}, r"model: good\.jsonl: this is a file"),
    "tracker unknown": ({"run": "{trackers: [nosuch]}"}, r"run\.trackers.*nosuch"),
}


@pytest.mark.parametrize("changes, expected", CONFIGS.values(), ids=CONFIGS)
def test_bad_tasks(refused: Refused, task: Callable[..., Path], changes: dict[str, str], expected: str) -> None:
    assert re.search(expected, refused("train", task(**changes)))


def test_bad_task_files(refused: Refused, task: Callable[..., Path], write: Callable[[str, str], Path]) -> None:
    assert "gone.yaml" in refused("train", "gone.yaml")
    assert "broken.yaml, line" in refused("train", write("broken.yaml", "model: embedded\ndata: [\n"))
    assert "mapping" in refused("train", write("list.yaml", "- model\n"))
    assert "key=value" in refused("train", task(), "optim.steps")
    assert "not a group" in refused("train", task(), "model.x=1")
    assert "not a run folder" in refused("train", "--resume", "gone")
    assert "one of the two" in refused("train")
    assert "twinlens plan gone/task.yaml" in refused("train", "--resume", "gone", "--dry-run")


def test_several_errors_are_reported(refused: Refused, task: Callable[..., Path], capsys) -> None:
    file = task(optim="{steps: many, learning_rate: fast}", lora="{rank: 0}")
    said = refused("train", file)
    assert said.startswith("error: ")


def test_bad_probes(refused: Refused, task: Callable[..., Path], write: Callable[[str, str], Path]) -> None:
    write("unknown.yaml", "- {ask: who?, group: friends}\n")
    assert "unknown.yaml, line 1" in refused("train", task(evaluation="{probes: [unknown.yaml]}"))
    write("names.yaml", "- {ask: who?, group: persona, expect: ['{name}']}\n")
    assert "names.yaml" in refused("train", task(evaluation="{probes: [names.yaml]}"))


def test_bad_models(refused: Refused, task: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    def broken(name: str, remove: str = "", **config: object) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in tiny_model.iterdir():
            if not (remove and file.match(remove)):
                (folder / file.name).write_bytes(file.read_bytes())
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    assert "config.json is missing" in refused("train", task(model=str(broken("a", "config.json"))))
    assert "no weights" in refused("train", task(model=str(broken("b", "*.safetensors"))))
    assert "baichuan" in refused("train", task(model=str(broken("c", model_type="baichuan"))))
    assert "no chat template" in refused("train", task(model=str(broken("d", "*.jinja"))))
    sharded = broken("e", "*.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "gone.safetensors"}}))
    assert "gone.safetensors is missing" in refused("train", task(model=str(sharded)))
    garbage = broken("f")
    (garbage / "config.json").write_text("{")
    assert "not valid JSON" in refused("train", task(model=str(garbage)))


def test_bad_deepspeed(refused: Refused, task: Callable[..., Path], write: Callable[[str, str], Path]) -> None:
    assert "deepspeed_zero2" in refused("train", task(), "--deepspeed", "zero9")
    assert "deepspeed_zero2" in refused("train", task(), "--deepspeed", "zero3")
    assert "ds.json" in refused("train", task(), "--deepspeed", write("ds.json", "{"))


def test_unwritable_paths(refused: Refused, task: Callable[..., Path], write: Callable[[str, str], Path]) -> None:
    write("file", "")
    assert "cannot be written" in refused("train", task(), "--work-dir", "file/below")
    assert "/dev/full" in refused("data", "repeat", "good.jsonl", "/dev/full", "-n", 2)
    assert "cannot be written" in refused("data", "persona", "file/below.jsonl", "--owner", "A", "--name", "B")


def test_bad_targets(
    refused: Refused, tmp_path: Path, write: Callable[[str, str], Path], task: Callable[..., Path]
) -> None:
    assert "not a run folder" in refused("compare", "gone")
    assert "no such folder" in refused("chat", "./gone")
    write("adapter/adapter_config.json", "{}")
    assert "not a LoRA adapter" in refused("chat", "adapter")
    assert "not a run folder" in refused("convert", "merge", "gone", "merged")
    assert "convert merge: wrong number of paths; give RUN DEST" in refused("convert", "merge", "gone")
    write("run/task.yaml", task().read_text())
    assert "adapter" in refused("convert", "merge", "run", "merged")
    assert "run" in refused("compare", "run")


def test_a_full_disk_ends_a_run_with_one_sentence(task: Callable[..., Path], tmp_path: Path) -> None:
    """A limit on file size simulates a full disk: writing more than 20 kB fails."""
    code = (
        "import resource, sys; from twinlens.cli.app import run; import torch, transformers, peft; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.argv = ['twinlens', *sys.argv[1:]]; run()"
    )
    arguments = ["train", str(task()), "--work-dir", str(tmp_path / "runs"), "run.save_every=1"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
