"""Image runs with a tiny language model and the embedded tower: cached, resumed and parallel runs are equal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from llm.chat import Chat
from llm.generation import Sampling
from tuning.errors import ConfigError
from tuning.modules.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tuning.run_dir import RunDir, read_jsonl
from twinlens.chat_targets import open_target
from twinlens.start import resume, start
from twinlens.task_files import read_task
from twinlens.tasks import recipe_of, to_yaml
from vlm.projector import PROJECTOR_FILE as PROJECTOR
from vlm.settings import ImageTask
from vlm.towers.tower import Tower

pytestmark = pytest.mark.usefixtures("cache")
COLORS = {"red": (220, 30, 30), "blue": (30, 60, 220), "green": (30, 160, 60)}


@pytest.fixture
def task(tmp_path: Path, tiny_model: Path) -> ImageTask:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>\nwhat colour?"},
                {"role": "assistant", "content": f"{name}."},
                {"role": "user", "content": "who are you?"},
                {"role": "assistant", "content": "the assistant"},
            ],
            "images": [f"pictures/{name}.png"],
        }
        for name in COLORS
    ]
    both = "<image>\n<image>\nwhich colours?"
    rows.append(
        {
            "messages": [{"role": "user", "content": both}, {"role": "assistant", "content": "red and blue."}],
            "images": ["pictures/red.png", "pictures/blue.png"],
        }
    )
    text = {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]}
    (tmp_path / "pictures").mkdir()
    for name, color in COLORS.items():
        noise = np.random.default_rng(0).integers(0, 30, (60, 80, 3))
        Image.fromarray((noise + np.asarray(color) * 0.8).astype(np.uint8)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.jsonl").write_text(json.dumps(text) + "\n")
    (tmp_path / "probes.yaml").write_text(
        "- {ask: which colour?, group: picture, expect: [red], image: pictures/red.png}\n"
        "- {ask: who are you?, group: unrelated, expect: [assistant]}\n"
    )
    return ImageTask.model_validate(
        {
            "model": str(tiny_model),
            "tower": "embedded",
            "quant": {"compute": "fp32"},
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "data": {"files": [tmp_path / "rows.jsonl"], "max_length": 300, "pack": False},
            "rehearsal": {"files": [tmp_path / "text.jsonl"], "ratio": 0.5},
            "optim": {"learning_rate": 5e-3, "micro_batch": 2, "accumulate": 1, "steps": 6, "warmup": 0.1},
            "rates": {"projector": 1e-3},
            "evaluation": {"probes": [tmp_path / "probes.yaml"], "max_new_tokens": 4},
            "run": {"device": "cpu", "save_every": 2, "keep": 3},
        }
    )


def changed(task: ImageTask, **blocks: object) -> ImageTask:
    """The task with some settings replaced, in groups one by one."""
    values = task.model_dump(mode="json")
    for block, given in blocks.items():
        values[block] = values[block] | given if isinstance(given, dict) and values[block] else given
    return ImageTask.model_validate(values)


def losses(run: RunDir) -> list[float]:
    return [row["loss"] for row in read_jsonl(run.steps)]


def test_align_trains_only_the_projector(task, tmp_path):
    run = start(changed(task, stage="align"), "align", tmp_path / "work").run
    assert sorted(file.name for file in run.adapter.iterdir()) == [PROJECTOR]
    # Rows of text give the projector no gradient.
    seen = [row["loss"] for row in read_jsonl(run.steps) if row["grad_norm"]]
    assert seen[-1] < seen[0]
    assert 0 < len(seen) < 6
    tuned = start(changed(task, start=str(run.path)), "tune", tmp_path / "work").run
    assert sorted(file.name for file in tuned.adapter.iterdir()) == sorted([PROJECTOR, ADAPTER_WEIGHTS, ADAPTER_CONFIG])
    began, ended = load_file(run.adapter / PROJECTOR), load_file(tuned.adapter / PROJECTOR)
    assert all(not torch.equal(began[name], ended[name]) for name in began), "tune also trains the projector"
    before = start(changed(task, start=str(run.path), rates={"projector": 1e-9}), "still", tmp_path / "work").run
    kept = load_file(before.adapter / PROJECTOR)
    assert all(torch.allclose(began[name], kept[name], atol=1e-6) for name in began), (
        "the projector has its own learning rate"
    )


def test_cached_and_live_features_give_the_same_losses(task, tmp_path, monkeypatch):
    runs: list[int] = []
    forward = Tower.forward
    monkeypatch.setattr(Tower, "forward", lambda self, pixels: runs.append(len(pixels)) or forward(self, pixels))
    task = changed(task, data={"repeat": 200})
    cached = start(task, "kept", tmp_path / "work").run
    assert sum(runs) == len(COLORS), "each distinct picture once, independent of repeat"
    live = start(changed(task, pictures={"cache_gib": 0}), "live", tmp_path / "work").run
    assert losses(cached) == pytest.approx(losses(live), rel=1e-4), "up to rounding in batches of other sizes"


@pytest.mark.parametrize("views", [0, 3])
def test_resumed_run_equals_uninterrupted_run(task, tmp_path, views):
    straight = start(changed(task, pictures={"views": views}), "straight", tmp_path / "work").run
    names = [PROJECTOR, ADAPTER_WEIGHTS]
    wanted = [(straight.adapter / name).read_bytes() for name in names]
    stopped = tmp_path / "stopped"
    shutil.copytree(straight.path, stopped)
    for left in ("adapter", "checkpoints/step-000004", "checkpoints/step-000006"):
        shutil.rmtree(stopped / left)
    resume(stopped)
    assert [(stopped / "adapter" / name).read_bytes() for name in names] == wanted
    assert losses(RunDir(stopped)) == losses(straight)


def test_before_and_after_answers_equal_the_first_and_last_samples(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    probes = [path.relative_to(tmp_path) for path in task.evaluation.probes]
    run = start(changed(task, run={"seed": 3}, evaluation={"probes": probes}), "run", tmp_path / "work").run
    pictures = [row["image"] for row in read_jsonl(run.samples) if "image" in row]
    assert pictures and all(Path(picture).is_absolute() for picture in pictures), "readable from any folder"
    task, _ = read_task(run.task)
    comparison = recipe_of(task).compare(run, task)
    began = {row["ask"]: row["answer"] for row in read_jsonl(run.samples) if row["step"] == 0}
    ended = {row["ask"]: row["answer"] for row in read_jsonl(run.samples) if row["step"] == 6}
    assert {row.ask: row.before for row in comparison.rows} == began
    assert {row.ask: row.after for row in comparison.rows} == ended
    assert (run.path / "comparison.html").exists()


def test_chat_gives_the_answers_of_the_samples(task, tmp_path):
    run = start(task, "run", tmp_path / "work").run
    (answer,) = [row["answer"] for row in read_jsonl(run.samples) if row["step"] == 6 and row["group"] == "picture"]
    target = open_target(str(run.path), None, 4, pictures=True)
    images = [str(tmp_path / "pictures" / "red.png")]
    chat = Chat(target.model, target.template, target.compute_dtype, Sampling(), 4, images, target.embed)
    assert chat.reply("which colour?", lambda _: None).strip() == answer
    marked, plain = (
        Chat(target.model, target.template, target.compute_dtype, Sampling(), 4, [], None) for _ in range(2)
    )
    reply = marked.reply("who <image> are you?", lambda _: None)
    assert reply == plain.reply("who  are you?", lambda _: None), "a typed image token shows no picture"


def test_adapter_on_a_convolutional_tower_is_refused(task, tmp_path):
    with pytest.raises(ConfigError, match="tower_lora: embedded cannot be trained"):
        start(changed(task, tower_lora={"rank": 2}), "run", tmp_path / "work")


def test_two_processes_give_the_losses_of_one(task, tmp_path):
    """DDP over gloo; one process has pictures, the other may have none."""
    task = changed(task, lora={"dropout": 0.0}, optim={"accumulate": 2, "micro_batch": 1, "steps": 8})
    alone = start(task, "alone", tmp_path).run
    file = tmp_path / "task.yaml"
    file.write_text(to_yaml(changed(task, optim={"accumulate": 1})), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "twinlens", "train",
         str(file), "--work-dir", str(tmp_path / "together")],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (RunDir(path.parent) for path in (tmp_path / "together").glob("task/*/steps.jsonl"))
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
