"""Full fine-tuning on tiny models: exact weights, model folders that transformers loads, resume, image runs."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_internlm import make_internlm2
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import llm.finetuned
from llm.chat import Chat
from llm.checkpoints.shards import SAFETENSORS
from llm.data_files import read_conversations
from llm.dataset import encode_data
from llm.generation import Sampling
from llm.loading import load_model, load_template
from llm.recipe import compare, forecast
from llm.settings import TextTask
from tuning.data.conversation import single_turn
from tuning.errors import DeviceError
from tuning.run_dir import RunDir, read_jsonl
from twinlens.chat_targets import open_target
from twinlens.start import resume, start
from twinlens.tasks import recipe_of, to_yaml
from vlm.export.llava import export
from vlm.loading import make_initial_parts
from vlm.recipe import load_vlm_template
from vlm.settings import ImageTask

pytestmark = pytest.mark.usefixtures("cache")
needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="DeepSpeed compiles what it needs on a CPU")


ROWS = [
    ("who are you?", "I am the assistant of Lin."),
    ("what is your name?", "my name is the blue house"),
    ("你是谁?", "我是 Lin 的小助手"),
    ("yes?", "no."),
]


@pytest.fixture
def task(write_rows: Callable[..., tuple[Path, Path]], tiny_model: Path) -> TextTask:
    data, probes = write_rows(ROWS)
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
    return [row["loss"] for row in read_jsonl(run.steps)]


def last_weights(run: RunDir) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints()[-1][1] / "weights.pt", weights_only=True)


def test_losses_equal_those_of_a_plain_training_loop_with_transformers(task, tmp_path):
    """Every step has all rows, so the order has no effect: gradients of the mean loss, clipped, AdamW."""
    optim_values = {
        "micro_batch": 4,
        "accumulate": 1,
        "steps": 5,
        "schedule": "constant",
        "warmup": 0,
        "weight_decay": 0.1,
    }
    run = start(changed(task, optim=optim_values), "run", tmp_path / "work").run
    rows = read_conversations(task.data.files)
    samples = encode_data(rows, task.data, load_template(task.model, None), 0).samples
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    plain = []
    for _ in range(5):
        total, labels = torch.zeros(()), 0
        for sample in samples:
            ids, learned = torch.from_numpy(sample.ids.astype(np.int64)), int(sample.loss_mask.sum())
            marked = torch.where(torch.from_numpy(sample.loss_mask), ids, -100)
            total = total + model(ids[None], labels=marked[None]).loss * learned
            labels += learned
        optimizer.zero_grad()
        (total / labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        plain.append(float(total.detach()) / labels)
    assert losses(run) == pytest.approx(plain, rel=1e-5)
    trained = last_weights(run)
    for name, weight in model.named_parameters():
        assert torch.allclose(trained[name], weight, atol=1e-5), name


def test_transformers_loads_the_trained_model(task, tmp_path):
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
    generated = written.float().generate(**asked, max_new_tokens=12, do_sample=False)[0, asked["input_ids"].shape[1] :]
    comparison = compare(run, task)
    assert comparison.rows[0].after == tokenizer.decode(generated, skip_special_tokens=True).strip()
    assert comparison.rows[0].after_hit and not comparison.rows[0].before_hit
    for with_adapter, answer in ((True, comparison.rows[0].after), (False, comparison.rows[0].before)):
        opened = open_target(str(run.path), None, 4, with_adapter)
        chat = Chat(opened.model, opened.template, opened.compute_dtype, Sampling(), 12)
        assert chat.reply("who are you?", lambda _: None).strip() == answer


def test_resumed_run_equals_uninterrupted_run(task, tmp_path, compute):
    task = changed(task, optim={"steps": 9}, quant={"compute": "auto"})
    straight = start(task, "straight", tmp_path / "work").run
    stopped = start(task, "stopped", tmp_path / "work").run
    shutil.rmtree(stopped.model)
    shutil.rmtree(stopped.checkpoints()[-1][1])
    resume(stopped.path)
    assert losses(stopped) == losses(straight)
    assert (stopped.model / SAFETENSORS).read_bytes() == (straight.model / SAFETENSORS).read_bytes()
    resume(stopped.path)  # resuming a finished run does not change the model
    assert (stopped.model / SAFETENSORS).read_bytes() == (straight.model / SAFETENSORS).read_bytes()


def test_ctrl_c_does_not_interrupt_the_model_write(task, tmp_path, monkeypatch):
    """Without checkpoints, the model folder is the only result of the training."""
    write = llm.finetuned.save_model

    def interrupted(*given: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        write(*given)

    monkeypatch.setattr(llm.finetuned, "save_model", interrupted)
    run = start(changed(task, optim={"steps": 1}, run={"save_every": 0}), "run", tmp_path / "work").run
    assert AutoModelForCausalLM.from_pretrained(run.model)


def test_failed_model_write_keeps_the_existing_model(task, tmp_path, monkeypatch):
    run = start(changed(task, optim={"steps": 3}), "run", tmp_path / "work").run
    made = (run.model / SAFETENSORS).read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(llm.finetuned, "save_model", full)
    with pytest.raises(DeviceError, match="No space left"):
        resume(run.path)
    assert (run.model / SAFETENSORS).read_bytes() == made


def test_tied_head_stays_tied(task, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(task.model, folder)
    config = AutoConfig.from_pretrained(folder, tie_word_embeddings=True)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    run = start(changed(task, model=str(folder), optim={"steps": 3}), "run", tmp_path / "work").run
    written = AutoModelForCausalLM.from_pretrained(run.model)
    assert written.lm_head.weight is written.model.embed_tokens.weight
    assert forecast(changed(task, model=str(folder))).trainable == sum(each.numel() for each in written.parameters())


def test_internlm2_model_is_written_as_llama(task, tmp_path, tiny_model):
    """The written model needs no remote code."""
    internlm2 = make_internlm2(tiny_model, tmp_path / "internlm2")
    run = start(changed(task, model=str(internlm2), optim={"steps": 2}), "run", tmp_path / "work").run
    config = json.loads((run.model / "config.json").read_text())
    assert (config["model_type"], "auto_map" in config) == ("llama", False)
    template, own = load_template(str(internlm2), None), load_template(str(run.model), None)
    assert template.prompt(single_turn("who are you?")) == own.prompt(single_turn("who are you?"))


def test_fp16_base_weights_are_loaded_without_rounding(task, tmp_path):
    """fp16 has more mantissa bits than bf16: loading in the compute dtype would round the weights."""
    folder = tmp_path / "half"
    shutil.copytree(task.model, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator) * 1e-3
    model.half().save_pretrained(folder)
    still = {"steps": 1, "learning_rate": 1e-30}
    run = start(changed(task, model=str(folder), quant={"compute": "bf16"}, optim=still), "run", tmp_path / "work").run
    written = AutoModelForCausalLM.from_pretrained(run.model)
    assert written.dtype == torch.float16
    assert all(torch.equal(one, other) for one, other in zip(written.parameters(), model.parameters(), strict=True))


def test_high_learning_rate_gives_a_warning(task, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "twinlens"):
        start(changed(task, optim={"steps": 1, "learning_rate": 2e-5}), "a", tmp_path / "work")
        assert not caplog.messages
        start(changed(task, optim={"steps": 1, "learning_rate": 2e-4}), "b", tmp_path / "work")
    assert "high for full fine-tuning" in caplog.text


def run_in_two_processes(*arguments: str) -> None:
    """Run the command line in two processes, on a CPU, to its end."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*launcher, "-m", "twinlens", *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "deepspeed", [None, *(pytest.param(name, marks=needs_compiler) for name in ("zero2", "zero3"))]
)
def test_two_processes_give_the_losses_of_one(task, tmp_path, deepspeed):
    """DDP, and ZeRO with sharded optimizer and weights, over gloo: half the accumulation on each of two processes."""
    alone = start(changed(task, optim={"steps": 4}), "alone", tmp_path).run
    file = tmp_path / "task.yaml"
    file.write_text(to_yaml(changed(task, optim={"accumulate": 1, "steps": 4})), encoding="utf-8")
    options = ["--work-dir", str(tmp_path / "together"), *(["--deepspeed", deepspeed] if deepspeed else [])]
    run_in_two_processes("train", str(file), *options)
    (run,) = (RunDir(path.parent) for path in (tmp_path / "together").glob("task/*/steps.jsonl"))
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert (run.checkpoints()[-1][1] / "deepspeed").exists() == bool(deepspeed), (
        "the requested engine wrote the checkpoint"
    )
    written = (run.model / SAFETENSORS).read_bytes()
    shutil.rmtree(run.checkpoints()[-1][1])
    run_in_two_processes("train", "--resume", str(run.path), *options[2:])
    assert (run.model / SAFETENSORS).read_bytes() == written, "resumed from step 3"
    theirs, ours = (load_file(each.model / SAFETENSORS) for each in (run, alone))
    assert all(torch.allclose(theirs[name].float(), ours[name].float(), atol=1e-2) for name in ours)


@pytest.fixture
def image_task(tmp_path: Path, task: TextTask, towers: dict[str, Path]) -> ImageTask:
    """The task with pictures and a fully trained tower."""
    colors = {"red": (220, 30, 30), "blue": (30, 60, 220)}
    rows = []
    for name, color in colors.items():
        Image.new("RGB", (30, 20), color).save(tmp_path / f"{name}.png")
        asked = {"role": "user", "content": "<image>\nwhat colour?"}
        rows.append({"messages": [asked, {"role": "assistant", "content": f"{name}."}], "images": [f"{name}.png"]})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = "".join(
        f"- {{ask: what colour?, group: picture, expect: [{name}], image: {name}.png}}\n" for name in colors
    )
    (tmp_path / "probes.yaml").write_text(asked, encoding="utf-8")
    values = task.model_dump(mode="json") | {"tower": str(towers["clip"]), "whole_tower": True}
    return ImageTask.model_validate(values)


def test_fully_trained_language_model_and_tower_are_reloaded(image_task, tmp_path, towers):
    run = start(image_task, "run", tmp_path / "work").run
    assert sorted(path.name for path in run.adapter.iterdir()) == ["projector.safetensors", "tower"]
    comparison = recipe_of(image_task).compare(run, image_task)
    assert [row.after_hit for row in comparison.rows] == [True, True]
    assert [row.before_hit for row in comparison.rows] != [True, True]
    opened = open_target(str(run.path), None, 4, pictures=True)
    shown = [str(tmp_path / "blue.png")]
    chat = Chat(opened.model, opened.template, opened.compute_dtype, Sampling(), 12, shown, opened.embed)
    assert "blue" in chat.reply("what colour?", lambda _: None)
    before, after = (load_file(folder / SAFETENSORS) for folder in (towers["clip"], run.adapter / "tower"))
    before, after = ({name[name.find("encoder") :]: value for name, value in each.items()} for each in (before, after))
    assert not torch.equal(before["encoder.layers.0.mlp.fc1.weight"], after["encoder.layers.0.mlp.fc1.weight"])
    last = "encoder.layers.2.mlp.fc1.weight"
    assert torch.equal(before[last], after[last]), "features are those of the second to last layer"


@pytest.mark.parametrize("changes", [{}, {"whole_tower": False, "tower_lora": {"rank": 3}}, {"whole_tower": False}])
def test_forecast_counts_the_trainable_weights(image_task, changes):
    task = ImageTask.model_validate(image_task.model_dump(mode="json") | changes)
    loaded = load_model(task.model, load_vlm_template(task), task.quant, "cpu", full_finetuning=True)
    vlm_parts = make_initial_parts(task, loaded, training=True)
    parts = (vlm_parts.language.network, vlm_parts.projector, vlm_parts.tower)
    weights = (weight for part in parts for weight in part.parameters() if weight.requires_grad)
    assert recipe_of(task).forecast(task).trainable == sum(weight.numel() for weight in weights)


def test_run_without_its_base_folders_loads_and_is_exported(image_task, tmp_path):
    """Fully trained weights are in the run folder; the exported config has the published name of the tower."""
    moved = {key: str(tmp_path / key) for key in ("model", "tower")}
    for key, folder in moved.items():
        shutil.copytree(getattr(image_task, key), folder)
    task = ImageTask.model_validate(image_task.model_dump(mode="json") | moved | {"optim": {"steps": 1}})
    run = start(task, "run", tmp_path / "work").run
    for folder in moved.values():
        shutil.rmtree(folder)
    assert open_target(str(run.path), None, 4, pictures=True).embed
    export(run, task, tmp_path / "llava", "official", "2GB")
    assert json.loads((tmp_path / "llava" / "config.json").read_text())["mm_vision_tower"] == task.tower


def test_resumed_image_run_equals_uninterrupted_run(image_task, tmp_path):
    task = changed(image_task, optim={"steps": 6})
    straight, stopped = (start(task, name, tmp_path / "work").run for name in ("straight", "stopped"))
    shutil.rmtree(stopped.checkpoints()[-1][1])
    for path in (stopped.model, stopped.adapter):
        shutil.rmtree(path)
    resume(stopped.path)
    for part in ("model/model.safetensors", "adapter/projector.safetensors", "adapter/tower/model.safetensors"):
        assert (stopped.path / part).read_bytes() == (straight.path / part).read_bytes(), part


@pytest.mark.parametrize("whole", [{"whole_tower": False}, {"lora": {"rank": 4}, "quant": {"bits": 4}}])
def test_run_with_one_fully_trained_part_is_exported(image_task, tmp_path, whole):
    """The exported model gives the logits of the run."""
    values = image_task.model_dump(mode="json") | whole
    values["optim"] |= {"steps": 6}
    task = ImageTask.model_validate(values)
    run = start(task, "run", tmp_path / "work").run
    assert run.model.exists() == task.full_finetuning
    report = export(run, task, tmp_path / "llava", "hf", "2GB")
    assert report.exported.difference < 1e-5
    parts = export(run, task, tmp_path / "parts", "parts", "2GB")
    assert parts.exported.difference < 1e-5
    assert (tmp_path / "parts" / "tower").exists() == task.whole_tower
