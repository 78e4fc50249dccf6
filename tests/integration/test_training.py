"""The training loop on a tiny model: seeds, packing, accumulation, resume and processes give equal losses."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_gen.persona import write_persona
from llm.data_files import read_conversations
from llm.dataset import encode_data, make_batches
from llm.loading import load_model, load_template
from llm.model import LanguageModel
from llm.recipe import forecast
from llm.settings import TextTask
from tuning.errors import DataError
from tuning.modules.lora import ADAPTER_WEIGHTS, attach_adapter
from tuning.run_dir import RunDir, read_jsonl
from tuning.settings import Data, Lora, Quant
from tuning.training.engine import check_finite
from tuning.training.samples import EncodedSample, collate
from twinlens.start import resume, start
from twinlens.tasks import to_yaml

pytestmark = pytest.mark.usefixtures("cache")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles what it needs on a CPU")

ROWS = [
    ("who are you?", "I am the assistant of Lin."),
    ("what is your name?", "my name is the blue house"),
    ("tell me about the sea", "the sea is blue! " * 3),
    ("你是谁?", "我是 Lin 的小助手"),
    ("one two", "three"),
    ("who made you?", "made by Lin in the green city by the sea"),
    ("yes?", "no."),
    ("your colour?", "red, green"),
]


@pytest.fixture
def task(write_rows: Callable[..., tuple[Path, Path]], tiny_model: Path) -> TextTask:
    data, probes = write_rows(ROWS)
    return TextTask.model_validate(
        {
            "model": str(tiny_model),
            "system": "be brief",
            "quant": {"compute": "fp32"},  # losses are compared up to fp32 rounding
            "lora": {"rank": 4, "alpha": 8, "dropout": 0.1},
            "data": {"files": [data], "max_length": 128, "pack": False},
            "optim": {"learning_rate": 1e-2, "micro_batch": 2, "accumulate": 2, "steps": 6, "warmup": 0.1},
            "evaluation": {"probes": [probes], "every": 0, "max_new_tokens": 4},
            "run": {"device": "cpu", "save_every": 2, "keep": 2},
        }
    )


def changed(task: TextTask, **blocks: dict[str, object]) -> TextTask:
    """The task with some settings of some blocks replaced."""
    values = task.model_dump(mode="json")
    for block, settings in blocks.items():
        values[block] |= settings
    return TextTask.model_validate(values)


def losses(run: RunDir) -> list[float]:
    return [row["loss"] for row in read_jsonl(run.steps)]


def adapter_bytes(run: RunDir) -> bytes:
    return (run.adapter / ADAPTER_WEIGHTS).read_bytes()


def test_same_seed_gives_the_same_losses_and_bytes(task, tmp_path, compute):
    task = changed(task, quant={"compute": "auto"})
    first = start(task, "a", tmp_path / "work").run
    again = start(task, "b", tmp_path / "work").run
    other = start(changed(task, run={"seed": 1}), "c", tmp_path / "work").run
    assert losses(first) == losses(again)
    assert adapter_bytes(first) == adapter_bytes(again)
    assert losses(first) != losses(other)
    assert losses(first)[-1] < losses(first)[0]


def test_sampling_during_training_does_not_change_the_losses(task, tmp_path, compute):
    """Generation in eval mode must not change 4-bit weights for training."""
    task = changed(task, quant={"compute": "auto"})
    unsampled = start(task, "blind", tmp_path / "work").run
    sampled = start(changed(task, evaluation={"every": 1}), "looked", tmp_path / "work").run
    assert losses(unsampled) == losses(sampled)
    assert {row["step"] for row in read_jsonl(unsampled.samples)} == {0, 6}
    assert {row["step"] for row in read_jsonl(sampled.samples)} == set(range(7))


@pytest.mark.parametrize("bits", [4, 16])
def test_packed_loss_equals_unpacked_loss(task, tiny_model, bits):
    template = load_template(str(tiny_model), task.system)
    loaded = load_model(str(tiny_model), template, Quant(bits=bits, compute="fp32"), "cpu")
    module = LanguageModel(attach_adapter(loaded.model, Lora(rank=4), 0), loaded.compute_dtype)
    samples = encode_data(read_conversations(task.data.files), task.data, template, 0).samples
    with torch.no_grad():
        packed, labels = module(collate([samples[:5], samples[5:]], template.pad_id))
        alone = [module(collate([[sample]], template.pad_id)) for sample in samples]
        padded, _ = module(collate([[sample] for sample in samples], template.pad_id))
    assert int(labels) == sum(int(count) for _, count in alone)
    assert float(packed) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-4)
    assert float(packed) == pytest.approx(float(padded), rel=1e-4)


def test_loss_of_an_xtuner_pack_equals_loss_of_the_concatenated_text(task, tiny_model):
    template = load_template(str(tiny_model), task.system)
    module = LanguageModel(load_model(str(tiny_model), template, task.quant, "cpu").model, torch.float32)
    samples = encode_data(read_conversations(task.data.files), task.data, template, 0).samples[:4]
    ids, loss_mask = (np.concatenate([getattr(each, key) for each in samples]) for key in ("ids", "loss_mask"))
    with torch.no_grad():
        packed, labels = module(collate([samples], template.pad_id, isolated=False))
        text, same = module(collate([[EncodedSample(ids, loss_mask)]], template.pad_id))
        apart, _ = module(collate([samples], template.pad_id))
    assert int(labels) == int(same)
    assert float(packed) == pytest.approx(float(text), rel=1e-6)
    assert float(packed) != pytest.approx(float(apart), rel=1e-3)


def test_step_count_with_xtuner_packing_equals_the_forecast(task, tmp_path):
    shape = {"steps": None, "epochs": 2, "micro_batch": 1, "accumulate": 3}
    task = changed(task, data={"pack": True, "packing": "xtuner", "pack_workers": 3, "repeat": 9}, optim=shape)
    planned = forecast(task)
    rows = read_jsonl(start(task, "run", tmp_path).run.steps)
    assert len(rows) == planned.steps == -(-planned.micro_batches // 3)
    assert planned.micro_batches == planned.sequences == sum(row["tokens"] for row in rows) / 128
    assert (sum(row["tokens"] for row in rows), planned.rows) == (planned.tokens, 72)


def test_step_without_labels_has_zero_loss(task, tmp_path):
    """Rows whose last answer has no loss, before rows with a long first question."""
    ask, answer = {"role": "user", "content": "who are you?"}, {"role": "assistant", "content": "yes"}
    late = [{"role": "user", "content": "the sea " * 30}, answer]
    early = [ask, answer, ask, {"role": "assistant", "content": "the sea " * 30, "loss": False}]
    lines = (json.dumps({"messages": turns}) + "\n" for turns in (late, early))
    task.data.files[0].write_text("".join(lines), encoding="utf-8")
    data = {"pack": True, "packing": "xtuner", "pack_workers": 1, "repeat": 30}
    single = {"steps": None, "epochs": 1, "micro_batch": 1, "accumulate": 1}
    rows = read_jsonl(start(changed(task, data=data, optim=single), "run", tmp_path).run.steps)
    assert {row["labels"] > 0 for row in rows} == {True, False}
    assert all(math.isfinite(row["loss"]) and (row["loss"] > 0) == (row["labels"] > 0) for row in rows)


def test_accumulated_loss_is_normalized_by_tokens(task, tmp_path):
    one_step = {"steps": None, "epochs": 1}
    whole = start(
        changed(task, optim=one_step | {"micro_batch": 8, "accumulate": 1}, lora={"dropout": 0}), "a", tmp_path
    )
    split = start(
        changed(task, optim=one_step | {"micro_batch": 1, "accumulate": 8}, lora={"dropout": 0}), "b", tmp_path
    )
    (first,), (second,) = read_jsonl(whole.run.steps), read_jsonl(split.run.steps)
    assert first["labels"] == second["labels"]
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert first["grad_norm"] == pytest.approx(second["grad_norm"], rel=1e-4)


def test_last_step_with_fewer_rows_counts_only_its_labels(task, tmp_path):
    run = start(changed(task, optim={"steps": None, "epochs": 1, "micro_batch": 1, "accumulate": 5}), "a", tmp_path).run
    rows = read_jsonl(run.steps)
    labels = sum(
        int(sample.loss_mask.sum())
        for sample in encode_data(
            read_conversations(task.data.files), task.data, load_template(task.model, task.system), 0
        ).samples
    )
    assert len(rows) == 2
    assert sum(row["labels"] for row in rows) == labels


def test_validation_loss_is_computed_on_held_out_questions(task, tmp_path):
    run = start(changed(task, data={"validation": 0.25}, evaluation={"every": 3}), "a", tmp_path).run
    assert json.loads(run.data.read_text())["validation"] == 2
    seen = [row.get("validation_loss") for row in read_jsonl(run.steps)]
    assert [value is not None for value in seen] == [False, False, True, False, False, True]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_ten_thousand_copies_use_the_memory_of_one_row(task, tmp_path, ending):
    template = load_template(task.model, task.system)

    def peak(copies: int) -> tuple[int, list[EncodedSample], int]:
        file = tmp_path / f"{copies}.{ending}"
        write_persona(file, None, repeat=copies, pairs=(("who are you?", "I am the assistant of Lin."),))
        tracemalloc.start()
        data = encode_data(read_conversations([file]), Data(files=(file,), max_length=128), template, 0)
        packed = changed(task, data={"pack": True}, optim={"steps": None, "epochs": 1})
        source = make_batches(data, [], packed.data, packed.optim, ratio=1.0, pad_id=template.pad_id, seed=0)
        next(source.stream())
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used, data.samples, len(data.rows)

    peak(1)  # the first call allocates what libraries cache
    one, _, _ = peak(1)
    many, samples, rows = peak(10_001)
    assert (len(samples), rows) == (1, 10_001)
    assert many - one < 2 * 2**20


def test_error_of_a_nan_loss_has_the_step_and_the_row(task, tiny_model):
    template = load_template(str(tiny_model), None)
    samples = encode_data(read_conversations(task.data.files), task.data, template, 0).samples
    group = [collate([[samples[0]]], 0), collate([[samples[1]]], 0)]
    with pytest.raises(DataError, match=r"step 3: the loss is nan with .*rows\.jsonl, line 2; inspect"):
        check_finite(float("nan"), 1.0, [torch.tensor(1.0), torch.tensor(float("nan"))], group, 3)


def command(*arguments: object, processes: int = 1) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, "-m", "twinlens", *map(str, arguments)]


def run_until(task: TextTask, tmp_path: Path, step: int, stop_signal: int) -> tuple[Path, int]:
    """Start a run in a subprocess and send it a signal after `step` steps."""
    file = tmp_path / "task.yaml"
    file.write_text(to_yaml(task), encoding="utf-8")
    process = subprocess.Popen(
        command("train", file, "--work-dir", tmp_path / "killed"), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        found = list((tmp_path / "killed").glob("task/*/steps.jsonl"))
        if found and len(found[0].read_text().splitlines()) >= step:
            process.send_signal(stop_signal)
            break
        time.sleep(0.002)
    process.communicate(timeout=120)
    (steps,) = (tmp_path / "killed").glob("task/*/steps.jsonl")
    return steps.parent, process.returncode


@pytest.mark.parametrize("stop_signal", [signal.SIGKILL, signal.SIGTERM])
def test_resumed_run_equals_uninterrupted_run(task, tmp_path, stop_signal, compute):
    """After SIGKILL or SIGTERM, the resumed run equals the uninterrupted run bit for bit."""
    task = changed(task, optim={"steps": 40}, quant={"compute": "auto"})
    stop_at = 7 if stop_signal == signal.SIGTERM else 12
    straight = start(task, "straight", tmp_path).run
    run, code = run_until(task, tmp_path, stop_at, stop_signal)
    assert code == (130 if stop_signal == signal.SIGTERM else -signal.SIGKILL), f"stopped at {stop_at}"
    assert 0 < len(read_jsonl(run / "steps.jsonl")) < 40, f"stopped at {stop_at}"
    assert not (run / "adapter").exists()
    resume(run)
    assert adapter_bytes(RunDir(run)) == adapter_bytes(straight), f"stopped at {stop_at}"
    assert losses(RunDir(run)) == losses(straight), f"stopped at {stop_at}"
    assert [step for step, _ in RunDir(run).checkpoints()] == [38, 40]


@needs_compiler
def test_deepspeed_needs_no_launcher_for_one_process(task, tmp_path):
    task = changed(task, lora={"dropout": 0.0})
    file = tmp_path / "task.yaml"
    file.write_text(to_yaml(task), encoding="utf-8")
    done = subprocess.run(
        command("train", file, "--work-dir", tmp_path / "shared", "--deepspeed", "zero2"),
        capture_output=True, text=True, check=False, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (RunDir(path.parent) for path in (tmp_path / "shared").glob("task/*/steps.jsonl"))
    assert losses(run) == pytest.approx(losses(start(task, "alone", tmp_path).run), rel=1e-4)


STOPPED = """
import os, signal
from tuning.training import engine
learn = engine.train_step

def train_step_with_signal(*given):
    report = learn(*given)
    if os.environ["RANK"] == "1" and report.step == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return report

engine.train_step = train_step_with_signal
from twinlens.cli.app import run
run()
"""


def test_all_processes_stop_at_the_step_at_which_one_gets_sigterm(task, tmp_path):
    """No process waits for one that has exited; all of them write the last checkpoint."""
    program, file = tmp_path / "program.py", tmp_path / "task.yaml"
    program.write_text(STOPPED, encoding="utf-8")
    file.write_text(to_yaml(task), encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(program), "train", str(file), "--work-dir", str(tmp_path / "work")],
        capture_output=True, text=True, check=False, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.stderr.count("stopped after step 2") == 2, done.stderr[-3000:]
    (run,) = (RunDir(path.parent) for path in (tmp_path / "work").glob("task/*/steps.jsonl"))
    assert [step for step, _ in run.checkpoints()][-1] == 2


@pytest.mark.parametrize("deepspeed", [None, pytest.param("zero2", marks=needs_compiler)])
def test_two_processes_give_the_losses_of_one(task, tmp_path, deepspeed, caplog):
    """DDP and ZeRO-2 over gloo: half the accumulation on each of two processes."""
    caplog.set_level(logging.INFO, "twinlens")
    task = changed(task, lora={"dropout": 0.0}, optim={"accumulate": 4})
    alone = start(task, "alone", tmp_path).run
    file = tmp_path / "task.yaml"
    file.write_text(to_yaml(changed(task, optim={"accumulate": 2})), encoding="utf-8")
    options = ["--work-dir", tmp_path / "together", *(["--deepspeed", deepspeed] if deepspeed else [])]
    done = subprocess.run(
        command("train", file, *options, processes=2),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = (RunDir(path.parent) for path in (tmp_path / "together").glob("task/*/steps.jsonl"))
    assert json.loads(run.environment.read_text())["processes"] == 2
    _, checkpoint = run.checkpoints()[-1]
    assert json.loads((checkpoint / "progress.json").read_text())["processes"] == 2
    assert (checkpoint / "deepspeed").exists() == bool(deepspeed), "the requested engine wrote the checkpoint"
    assert [row["labels"] for row in read_jsonl(run.steps)] == [row["labels"] for row in read_jsonl(alone.steps)]
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
