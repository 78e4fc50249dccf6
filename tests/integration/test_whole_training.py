"""Every weight trained, on tiny models: kept exactly, written as a model that others load, asked before and after."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.chat import Chat
from llm.generation import Sampling
from llm.dataset import encode_data
from llm.loading import load_model, load_template
from llm.recipe import forecast, judge
from llm.settings import TextTask
from llm.sources import read_conversations
from tuning.errors import ConfigError, ModelError
from tuning.run_dir import RunDir, read_lines
from tuning.settings import Quant
from twinlens.start import go_on, recipe_of, start
from twinlens.targets import open_target
from vlm.settings import ImageTask

pytestmark = pytest.mark.usefixtures("cache")


ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in [
        ("who are you?", "I am the assistant of Lin."),
        ("what is your name?", "my name is the blue house"),
        ("你是谁?", "我是 Lin 的小助手"),
        ("yes?", "no."),
    ]
]


@pytest.fixture
def task(tmp_path: Path, tiny_model: Path) -> TextTask:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    probes = tmp_path / "probes.yaml"
    probes.write_text("- {ask: who are you?, group: persona, expect: [Lin]}\n", encoding="utf-8")
    return TextTask.model_validate(
        {
            "model": str(tiny_model),
            "lora": None,
            "quant": {"bits": 16, "compute": "fp32"},
            "data": {"files": [data], "max_length": 128, "pack": False},
            "optim": {"learning_rate": 3e-3, "micro_batch": 4, "accumulate": 2, "steps": 30},
            "evaluation": {"probes": [probes], "max_new_tokens": 12},
            "run": {"device": "cpu", "save_every": 3, "keep": 20},
        }
    )


def changed(task: TextTask, **blocks: object) -> TextTask:
    """The task with some settings replaced, those of blocks one by one."""
    values = task.model_dump(mode="json")
    for block, given in blocks.items():
        values[block] = values[block] | given if isinstance(given, dict) else given
    return type(task).model_validate(values)


def losses(run: RunDir) -> list[float]:
    return [row["loss"] for row in read_lines(run.steps)]


def last_weights(run: RunDir) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints()[-1][1] / "weights.pt", weights_only=True)


def test_it_learns_what_a_plain_loop_over_transformers_learns(task, tmp_path):
    """The same rows at every step, so that no order matters: gradients of the mean loss, clipped, AdamW."""
    alike = {"micro_batch": 4, "accumulate": 1, "steps": 5, "schedule": "constant", "warmup": 0, "weight_decay": 0.1}
    run = start(changed(task, optim=alike), "run", tmp_path / "work").run
    rows = read_conversations(task.data.files)
    samples = encode_data(rows, task.data, load_template(task.model, None), 0).samples
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    plain = []
    for _ in range(5):
        total, labels = torch.zeros(()), 0
        for sample in samples:
            ids, learned = torch.from_numpy(sample.ids.astype(np.int64)), int(sample.supervised.sum())
            marked = torch.where(torch.from_numpy(sample.supervised), ids, -100)
            total = total + model(ids[None], labels=marked[None]).loss * learned
            labels += learned
        optimizer.zero_grad()
        (total / labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain.append(float(total.detach()) / labels)
    assert losses(run) == pytest.approx(plain, rel=1e-5)
    kept = last_weights(run)
    for name, weight in model.named_parameters():
        assert torch.allclose(kept[name], weight, atol=1e-5), name


def test_a_run_ends_in_a_model_that_transformers_loads(task, tmp_path):
    run = start(task, "run", tmp_path / "work").run
    assert losses(run)[-1] < losses(run)[0] / 4
    assert not run.adapter.exists()
    written = AutoModelForCausalLM.from_pretrained(run.model)
    for name, weight in last_weights(run).items():
        assert torch.equal(written.get_parameter(name), weight.to(torch.bfloat16)), name
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "who are you?"}], add_generation_prompt=True, return_tensors="pt"
    )
    said = written.float().generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    comparison = judge(run, task)
    assert comparison.rows[0].after == tokenizer.decode(said, skip_special_tokens=True).strip()
    assert comparison.rows[0].after_hit and not comparison.rows[0].before_hit
    for with_adapter, answer in ((True, comparison.rows[0].after), (False, comparison.rows[0].before)):
        opened = open_target(str(run.path), None, 4, with_adapter)
        chat = Chat(opened.model, opened.template, opened.compute, Sampling(), 12)
        assert chat.reply("who are you?", lambda _: None).strip() == answer
