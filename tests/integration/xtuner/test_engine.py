"""Both engines on the same task. Needs `twinlens xtuner install`; takes minutes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file

from llm.settings import TextTask
from tuning.run_dir import RunDir, read_jsonl
from twinlens.start import start
from twinlens.tasks import AnyTask, recipe_of, to_yaml
from twinlens.xtuner.engine.environment import MARKER, default_folder, python_of
from vlm.projector import PROJECTOR_FILE as PROJECTOR
from vlm.settings import ImageTask
from vlm.towers.tower import TOWER_FOLDER

INSTALLED = default_folder()  # before the tests change the cache folder
pytestmark = pytest.mark.usefixtures("cache")
installed = pytest.mark.skipif(not (INSTALLED / MARKER).exists(), reason="run `twinlens xtuner install` first")
QUESTIONS = ["who are you?", "your name?", "what is red", "你是谁", "tell me", "yes or no?", "one two", "the sea"]
ANSWERS = ["the assistant of Lin", "blue house", "a colour!", "Lin 的小助手", "about what?", "no.", "three", "is blue"]


@pytest.fixture
def xtuner() -> Path:
    return INSTALLED


@pytest.fixture
def text_task(tmp_path: Path, tiny_model: Path) -> TextTask:
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]}
        for ask, say in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    write_arrow_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "probes.yaml").write_text("- {ask: who are you?, group: persona, expect: [Lin]}\n")
    return TextTask.model_validate(
        {
            "model": str(tiny_model),
            "quant": {"bits": 16, "compute": "fp32"},
            "lora": {"rank": 8, "alpha": 16},
            "data": {"files": [tmp_path / "rows.jsonl"], "max_length": 128, "pack": False},
            "optim": {"learning_rate": 5e-3, "micro_batch": 4, "accumulate": 1, "epochs": 6, "warmup": 0},
            "evaluation": {"probes": [tmp_path / "probes.yaml"], "max_new_tokens": 4},
            "run": {"device": "cpu"},
        }
    )


@pytest.fixture
def image_task(tmp_path: Path, text_task: TextTask, towers: dict[str, Path], pictures: list[Path]) -> ImageTask:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "<image>\nwhat colour?"},
                {"role": "assistant", "content": answer},
                {"role": "user", "content": "who are you?"},
                {"role": "assistant", "content": "the assistant"},
            ],
            "images": [picture.name],
        }
        for picture, answer in zip(pictures, ("red.", "blue.", "green."), strict=True)
    ]
    rows.append({"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "three"}]})
    write_arrow_rows(tmp_path / "seen.jsonl", rows)
    values = text_task.model_dump(mode="json")
    values["data"]["files"] = [str(tmp_path / "seen.jsonl")]
    values |= {"tower": str(towers["clip"]), "stage": "tune"}
    return ImageTask.model_validate(values)


def write_arrow_rows(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def changed(task: AnyTask, **blocks: object) -> AnyTask:
    """The task with some settings replaced."""
    values = task.model_dump(mode="json")
    for block, given in blocks.items():
        values[block] = values[block] | given if isinstance(given, dict) and values[block] else given
    return type(task).model_validate(values)


def curve(run: RunDir, key: str = "loss") -> list[float]:
    return [row[key] for row in read_jsonl(run.steps)]


def both(task: AnyTask, work: Path, xtuner: Path) -> tuple[RunDir, RunDir]:
    """A run of twinlens and a run of XTuner; the loss curves are appended to the file $CURVES, if set."""
    name = os.environ.get("PYTEST_CURRENT_TEST", "").partition("::")[2].partition(" ")[0]
    ours, theirs = start(task, "ours", work).run, start(task, "theirs", work, xtuner=xtuner).run
    if file := os.environ.get("CURVES"):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"test": name, "ours": curve(ours), "xtuner": curve(theirs)}) + "\n")
    return ours, theirs


def shapes(folder: Path) -> dict[str, dict[str, torch.Size]]:
    """Names and shapes of all weights, by file."""
    files = sorted(folder.rglob("*.safetensors"))
    return {
        str(file.relative_to(folder)): {name: value.shape for name, value in load_file(file).items()} for file in files
    }


def assert_equal_runs(ours: RunDir, theirs: RunDir, rel: float = 1e-3) -> None:
    assert curve(theirs)[0] == pytest.approx(curve(ours)[0], rel=1e-3), "same rows, before training"
    assert curve(theirs) == pytest.approx(curve(ours), rel=rel), "same order, step by step"
    assert curve(theirs)[-1] < 0.9 * curve(theirs)[0]
    for key in ("tokens", "labels"):
        assert curve(theirs, key) == curve(ours, key)
    assert curve(theirs, "grad_norm") == pytest.approx(curve(ours, "grad_norm"), rel=10 * rel)
    for folder in ("adapter", "model"):
        assert shapes(theirs.path / folder) == shapes(ours.path / folder)


@pytest.mark.slow
@installed
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quant": {"bits": 4}, "template": "internlm2_chat"},
        {"data": {"pack": True, "packing": "xtuner", "pack_workers": 1, "max_length": 32}},
        {"lora": None, "optim": {"learning_rate": 1e-3, "weight_decay": 0.1}},
    ],
    ids=["lora", "qlora", "packed", "whole"],
)
def test_text_losses_of_both_engines_are_equal(text_task, tmp_path, xtuner, changes):
    task = changed(text_task, **changes)
    ours, theirs = both(task, tmp_path / "work", xtuner)
    assert_equal_runs(ours, theirs)
    assert recipe_of(task).compare(theirs, task).rows, "twinlens loads the result"


LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], torch_dtype=torch.float32)
torch.save(model(input_ids=torch.arange(30)[None]).logits.detach(), sys.argv[2])
"""


@pytest.mark.slow
@installed
def test_transformers_4_loads_a_fully_finetuned_model(text_task, tmp_path, xtuner):
    task = changed(text_task, lora=None, optim={"learning_rate": 1e-3, "epochs": 1})
    run = start(task, "ours", tmp_path / "work").run
    command = [python_of(xtuner), "-c", LOGITS, run.model, tmp_path / "logits.pt"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": ""})
    model = transformers.AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    ours = model(input_ids=torch.arange(30)[None]).logits
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), ours, atol=1e-4)


@pytest.mark.slow
@installed
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
def test_both_versions_of_transformers_read_the_same_model(text_task, tmp_path, xtuner, tokenizer, kind):
    rope = {"rope_type": "dynamic", "rope_theta": 5e5, "factor": 2.0} if kind == "Llama" else {"rope_theta": 5e5}
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(
        **sizes, num_key_value_heads=2, vocab_size=len(tokenizer), rope_parameters=rope, tie_word_embeddings=True,
        initializer_range=0.2, rms_norm_eps=1e-3, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    task = changed(text_task, model=str(tmp_path / "model"), optim={"epochs": 2})
    assert_equal_runs(*both(task, tmp_path / "work", xtuner))


@pytest.mark.slow
@installed
@pytest.mark.parametrize(
    "changes",
    [
        {"stage": "align"},
        {"tower_lora": {"rank": 2, "alpha": 4}},
        {"lora": None, "whole_tower": True, "rates": {"tower": 5e-4}, "optim": {"learning_rate": 1e-3}},
    ],
    ids=["align", "tune", "whole"],
)
def test_image_losses_of_both_engines_are_equal(image_task, tmp_path, xtuner, changes):
    task = changed(changed(image_task, rates={"projector": 1e-3}), **changes)
    ours, theirs = both(task, tmp_path / "work", xtuner)
    assert_equal_runs(ours, theirs, 0.05 if "tower_lora" in changes else 1e-3)  # other initial weights of the adapters
    assert (theirs.adapter / PROJECTOR).exists()
    assert (theirs.adapter / TOWER_FOLDER).exists() == ("stage" not in changes)
    assert recipe_of(task).compare(theirs, task).rows


@pytest.mark.slow
@installed
def test_packing_rehearsal_and_accumulation_give_the_same_token_counts(text_task, tmp_path, xtuner):
    others = [{"role": "user", "content": "red, blue"}, {"role": "assistant", "content": "green"}]
    write_arrow_rows(tmp_path / "others.jsonl", [{"messages": others}])
    task = changed(
        text_task,
        data={"pack": True, "max_length": 64},
        rehearsal={"files": [str(tmp_path / "others.jsonl")], "ratio": 0.5},
        optim={"micro_batch": 2, "accumulate": 3, "warmup": 0.3, "gradient_checkpointing": True},
        lora={"dropout": 0.1},
    )
    ours, theirs = both(task, tmp_path / "work", xtuner)
    assert len(curve(theirs)) == len(curve(ours))
    assert curve(theirs, "tokens") == curve(ours, "tokens")
    assert curve(theirs)[-1] < curve(theirs)[0]
    assert recipe_of(task).compare(theirs, task).rows


@pytest.mark.slow
@installed
def test_sigterm_stops_the_trainer_process(text_task, tmp_path, xtuner, monkeypatch):
    monkeypatch.setenv("TWINLENS_XTUNER", str(xtuner))
    (tmp_path / "task.yaml").write_text(to_yaml(changed(text_task, optim={"epochs": 5000})))
    command = [sys.executable, "-m", "twinlens", "train", "task.yaml", "--engine", "xtuner"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        while not any(file.stat().st_size for file in tmp_path.glob("work_dirs/task/*/steps.jsonl")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.2)
        trainers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    assert [each for each in trainers if each.is_running() and each.status() != psutil.STATUS_ZOMBIE] == []
