"""A config without a LoRA becomes full fine-tuning; a config with a LoRA does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
from xtuner_config import IMAGE, TEXT, TRAINER

from tuning.settings import Lora
from twinlens.task_files import OpenedTask, open_task
from vlm.settings import ImageTask

Write = Callable[[str, str], Path]
UNQUANTISED = "model['llm'].update(quantization_config=None)\n"
FULL = UNQUANTISED + "model['lora'] = None\n"


def opened(write: Write, text: str) -> OpenedTask:
    return open_task(write("config.py", text))


def image(write: Write, change: str) -> ImageTask:
    task = opened(write, f"{IMAGE}{UNQUANTISED}model.update({change})\n").task
    assert isinstance(task, ImageTask)
    return task


def test_text_without_a_lora_is_full_finetuning(write: Write) -> None:
    found = opened(write, TEXT + FULL)
    assert (found.task.lora, found.task.quant.bits, found.task.full_finetuning) == (None, 16, True)
    (line,) = [line for line in found.differs if line.startswith("model.llm.torch_dtype")]
    assert "float16" in line and "float32 until" in line
    assert not [line for line in opened(write, TEXT).differs if "torch_dtype" in line]


def test_trainer_config_without_a_lora_is_full_finetuning(write: Write) -> None:
    found = opened(write, TRAINER + "model.update(quantization_config=None)\nlora = None\n")
    assert (found.task.lora, found.task.quant.bits) == (None, 16)
    assert found.task.optim.gradient_checkpointing is False  # PEFT turns it on only for quantized weights
    assert [line.partition(":")[0] for line in found.differs] == ["model.torch_dtype"]


@pytest.mark.parametrize("lora", ["dict()", "dict(type=LoraConfig)"])
def test_lora_without_values_has_defaults(write: Write, lora: str) -> None:
    task = opened(write, f"{TEXT}{UNQUANTISED}model['lora'] = {lora}\n").task
    assert task.lora == Lora(rank=8, alpha=8)  # PEFT's defaults


@pytest.mark.parametrize(
    ("frozen", "adapter", "frozen_tower", "tower_adapter"),
    [
        (frozen, adapter, frozen_tower, tower_adapter)
        for frozen in (True, False)
        for adapter in (True, False)
        for frozen_tower in (True, False)
        for tower_adapter in (True, False)
        if not (frozen and not adapter and (tower_adapter or not frozen_tower))  # only the tower
    ],
)
def test_trained_parts_of_a_llava(
    write: Write, frozen: bool, adapter: bool, frozen_tower: bool, tower_adapter: bool
) -> None:
    change = f"freeze_llm={frozen}, freeze_visual_encoder={frozen_tower}"
    change += "" if adapter else ", llm_lora=None"
    change += "" if tower_adapter else ", visual_encoder_lora=None"
    task = image(write, change)
    assert task.stage == ("align" if frozen and not adapter else "tune")
    assert task.full_finetuning == (not frozen and not adapter)
    assert (task.tower_lora is not None) == tower_adapter
    assert task.whole_tower == (not frozen_tower and not tower_adapter)


def test_llava_without_frozen_parts_is_full_finetuning(write: Write) -> None:
    task = image(write, "freeze_llm=None, freeze_visual_encoder=None, llm_lora=None, visual_encoder_lora=None")
    assert task.full_finetuning and task.whole_tower
