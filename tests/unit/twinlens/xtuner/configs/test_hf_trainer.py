"""Configs for transformers' Trainer: each argument becomes a setting or a note."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from xtuner_config import TRAINER

from tuning.errors import ConfigError
from tuning.settings import Lora
from twinlens.task_files import open_task
from twinlens.xtuner.configs.mapping import MappedConfig, map_config
from vlm.settings import ImageTask

Write = Callable[[str, str], Path]


def mapped(write: Write, change: str = "") -> MappedConfig:
    return map_config(write("config.py", f"{TRAINER}\n{change}\n"))


def test_a_config_for_trainer(write: Write) -> None:
    opened = open_task(write("config.py", TRAINER))
    task, optim = opened.task, opened.task.optim
    assert not isinstance(task, ImageTask)
    assert (task.model, task.template, task.quant.bits) == ("internlm/internlm-7b", "internlm_chat", 4)
    assert task.lora == Lora(rank=64, alpha=16, dropout=0.1)
    assert (task.data.files, task.data.max_length) == ((Path("rows.jsonl"),), 1024)
    assert (task.data.pack, task.data.packing, task.data.pack_workers) == (True, "xtuner", 32)
    assert (optim.learning_rate, optim.steps, optim.epochs) == (1e-4, 600, None)
    assert (optim.micro_batch, optim.accumulate, optim.warmup, optim.schedule) == (2, 4, 0.1, "cosine")
    assert (optim.betas, optim.weight_decay, optim.clip) == ((0.9, 0.95), 0.01, 0.5)
    assert (task.run.save_every, task.run.keep, task.run.seed) == (50, 3, 7)  # unchanged: optimizer steps already
    assert opened.differs == ()


def test_missing_arguments_have_the_defaults_of_training_arguments(write: Write) -> None:
    from transformers import TrainingArguments

    defaults: dict[str, Any] = {name: field.default for name, field in TrainingArguments.__dataclass_fields__.items()}
    document = mapped(write, "training_args = None").document
    optim = document["optim"]
    assert (optim["learning_rate"], optim["epochs"]) == (defaults["learning_rate"], defaults["num_train_epochs"])
    assert optim["micro_batch"] == defaults["per_device_train_batch_size"]
    assert optim["accumulate"] == defaults["gradient_accumulation_steps"]
    assert optim["betas"] == [defaults["adam_beta1"], defaults["adam_beta2"]]
    assert (optim["weight_decay"], optim["clip"]) == (defaults["weight_decay"], defaults["max_grad_norm"])
    assert (optim["schedule"], optim["warmup"]) == (defaults["lr_scheduler_type"], defaults["warmup_steps"])
    assert document["run"] == {"seed": defaults["seed"], "save_every": defaults["save_steps"]}


@pytest.mark.parametrize(
    ("change", "group", "expected"),
    [
        ("max_steps=-1, num_train_epochs=2, warmup_steps=0", "optim", {"epochs": 2, "warmup": 0}),
        ("warmup_steps=0, warmup_ratio=0.05", "optim", {"warmup": 0.05}),
        ("lr_scheduler_type='constant'", "optim", {"schedule": "constant", "warmup": 0}),
        ("lr_scheduler_type='constant_with_warmup'", "optim", {"schedule": "constant", "warmup": 0.1}),
        ("lr_scheduler_type=SchedulerType.CONSTANT", "optim", {"schedule": "constant"}),
        ("save_strategy='no'", "run", {"save_every": None, "keep": 3}),
    ],
)
def test_each_argument_becomes_a_setting(write: Write, change: str, group: str, expected: dict[str, Any]) -> None:
    found = mapped(write, f"from transformers import SchedulerType\ntraining_args.update({change})")
    assert {key: found.document[group].get(key) for key in expected} == expected
    assert found.differences == ()


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ("max_steps=-1", "training_args.warmup_steps", "60 steps .* optim.warmup is 0.03"),
        ("optim='paged_adamw_32bit'", "training_args.optim", "AdamW is used"),
        ("fp16=True", "training_args.fp16", "quant.compute"),
        ("max_grad_norm=0", "training_args.max_grad_norm", "norm of 1"),
        ("lr_scheduler_type='polynomial'", "training_args.lr_scheduler_type", "cosine is used"),
        ("save_strategy='epoch'", "training_args.save_strategy", "run.save_every"),
        ("save_steps=0.1", "training_args.save_steps", "run.save_every"),
        ("save_total_limit=None", "training_args.save_total_limit", "run.keep"),
        ("neftune_noise_alpha=5", "training_args.neftune_noise_alpha", "5; has no counterpart"),
        ("deepspeed='zero2.json'", "training_args.deepspeed", "--deepspeed"),
    ],
)
def test_each_difference_has_a_note(write: Write, change: str, path: str, says: str) -> None:
    (line,) = mapped(write, f"training_args.update({change})").differences
    assert re.match(f"{re.escape(path)}: .*{says}", line)


def test_another_trainer_has_a_note(write: Write) -> None:
    (line,) = mapped(write, "from transformers import Seq2SeqTrainer\ntrainer = Seq2SeqTrainer").differences
    assert line.startswith("trainer: Seq2SeqTrainer")


def test_other_framework_is_refused(write: Write) -> None:
    with pytest.raises(ConfigError, match="trains AutoModelForCausalLM"):
        mapped(write, "framework = 'mmengine'")
