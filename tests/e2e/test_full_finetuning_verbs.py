"""Full fine-tuning from the command line: plan, train, compare, chat, and errors."""

import json
import shutil
from pathlib import Path

import pytest

TASK = """\
model: {model}
lora: null
quant: {{bits: 16, compute: fp32}}
data: {{files: [rows.jsonl]}}
optim: {{learning_rate: 5.0e-3, steps: 20, micro_batch: 2, accumulate: 1}}
evaluation: {{probes: [probes.yaml], max_new_tokens: 24}}
run: {{device: cpu}}
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """The working directory, with a task."""
    turns = [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "the assistant of Lin."}]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    (tmp_path / "probes.yaml").write_text("- {ask: who are you?, group: persona, expect: [Lin]}\n", encoding="utf-8")
    (tmp_path / "task.yaml").write_text(TASK.format(model=tiny_model), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_full_finetuning_from_plan_to_compare(run_json, folder):
    planned = run_json("plan", "task.yaml")
    assert planned["trainable"] == planned["parameters"]
    trained = run_json("train", "task.yaml")
    assert Path(trained["model"]).is_dir() and "adapter" not in trained
    scores = run_json("compare", trained["run"])["scores"]["persona"]
    assert (scores["before"], scores["after"]) == (0, 1)
    again = run_json(
        "train", "task.yaml", f"model={trained['model']}", "optim.steps=1"
    )  # a trained model can be a base model
    assert again["loss"] < 0.1


def test_full_finetuning_errors(folder, refused):
    assert "cannot train 4-bit weights: set quant.bits: 16" in refused("check", "task.yaml", "quant.bits=4")
    unfinished = folder / "work_dirs" / "task" / "1"
    unfinished.mkdir(parents=True)
    shutil.copyfile(folder / "task.yaml", unfinished / "task.yaml")
    assert f"use {unfinished / 'model'}." in refused("convert", "merge", unfinished, "merged")
    assert "model/ is missing" in refused("chat", unfinished)
    assert "model/ is missing" in refused("compare", unfinished)


def test_too_little_disk_space_for_checkpoints_is_refused(folder, refused, monkeypatch):
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    assert "lower run.keep" in refused("check", "task.yaml", "run.save_every=1", "run.keep=99")


def test_a_quantized_base_is_refused(folder, refused, tiny_model):
    base = folder / "quantized"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    error = refused("train", "task.yaml", f"model={base}")
    assert "stored quantized" in error and "use the 16-bit original" in error
