"""Runs on models of a hub: the run pins the commit, and towers are downloaded the same way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from llm.settings import TextTask
from tuning.run_dir import read_jsonl
from twinlens.chat_targets import open_target
from twinlens.start import resume, start
from twinlens.task_files import read_task
from vlm.towers.registry import load_tower, tower_facts

pytestmark = pytest.mark.usefixtures("cache")
ROW = '{"messages": [{"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "Lin"}]}\n'


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def task(tmp_path: Path) -> TextTask:
    (tmp_path / "rows.jsonl").write_text(ROW * 4, encoding="utf-8")
    blocks = {"lora": {"rank": 2}, "quant": {"bits": 16, "compute": "fp32"}, "run": {"device": "cpu", "save_every": 1}}
    data = {"files": [tmp_path / "rows.jsonl"], "max_length": 64}
    return TextTask.model_validate(
        {"model": "owner/tiny", "revision": "v1", "data": data, "optim": {"steps": 2, "accumulate": 1}} | blocks
    )


def test_run_pins_the_commit_and_resumes_with_it(hub: HubServer, tiny_model: Path, task, tmp_path, monkeypatch):
    commit = hub.publish("owner/tiny", files_of(tiny_model), "v1")
    run = start(task, "run", tmp_path).run
    pinned, _ = read_task(run.task)
    assert (pinned.model, pinned.revision) == ("owner/tiny", commit)
    assert (run.adapter / "adapter_config.json").read_text().count(commit) == 1
    hub.publish("owner/tiny", {"config.json": b"broken"}, "v1")
    hub.offline(monkeypatch)
    losses = [row["loss"] for row in read_jsonl(run.steps)]
    shutil.rmtree(run.path / "checkpoints" / "step-000002")
    resume(run.path)
    assert [row["loss"] for row in read_jsonl(run.steps)] == losses
    assert open_target(str(run.adapter), None, 16).model is not None


def test_tower_is_downloaded_from_the_hub(hub: HubServer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=42, patch_size=14
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    CLIPImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}).save_pretrained(
        tmp_path / "clip"
    )
    hub.publish("owner/clip", files_of(tmp_path / "clip"), "v2")
    assert tower_facts("owner/clip@v2").patches == 9
    assert not [line for line in hub.requests if line.endswith(".safetensors")]
    assert load_tower("owner/clip@v2", torch.device("cpu"), torch.float32).facts == tower_facts(str(tmp_path / "clip"))


def test_hf_endpoint_selects_the_mirror(hub: HubServer, tmp_path: Path) -> None:
    hub.publish("owner/model", {"config.json": b"{}", "model.safetensors": bytes(2 << 20)})
    (tmp_path / "rows.jsonl").write_text(ROW, encoding="utf-8")
    (tmp_path / "task.yaml").write_text("model: owner/model\ndata: {files: [rows.jsonl]}\noptim: {steps: 1}\n")
    done = subprocess.run(
        [sys.executable, "-m", "twinlens", "check", "task.yaml"],
        cwd=tmp_path, env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"model: owner/model: to download: 2.0 MiB in 2 files to {tmp_path / 'home'}" in done.stdout
