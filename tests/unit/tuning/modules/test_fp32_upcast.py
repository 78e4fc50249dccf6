import copy
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from tuning.modules.fp32_upcast import fp32_upcast, merge_adapters

IDS = torch.arange(40)[None]


@pytest.fixture
def half(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).eval()


@pytest.fixture
def exact(tiny_model: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()


def adapted(model: PreTrainedModel, **settings: object) -> PeftModel:
    """The model with a large random adapter, equal for every model."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    peft_model = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return peft_model


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def dtypes(model: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_upcast_logits_equal_fp32_logits_bit_for_bit(half, exact, settings):
    with fp32_upcast(half):
        assert torch.equal(logits(half), logits(exact))
    half, exact = adapted(half, **settings), adapted(exact, **settings)
    before = dtypes(half)
    with fp32_upcast(half):
        assert torch.equal(given := logits(half), logits(exact))
    merged = copy.deepcopy(exact).merge_and_unload()
    with fp32_upcast(half, merged=True):
        assert torch.equal(logits(half), logits(merged))
    assert dtypes(half) == before
    with fp32_upcast(half):
        assert torch.equal(logits(half), given), "merging leaves no change"


def test_failure_in_the_block_restores_the_weights(half):
    half = adapted(half)
    before = dtypes(half)
    block = half.get_base_model().model.layers[1]
    hook = block.self_attn.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), fp32_upcast(half, merged=True):
        logits(half)
    hook.remove()
    assert dtypes(half) == before
    with fp32_upcast(half), torch.no_grad():
        logits(half)


def test_merged_weights_are_rounded_once(half, exact):
    merged = adapted(exact).merge_and_unload()
    rounded = merge_adapters(adapted(half), torch.bfloat16)
    for name, weight in merged.named_parameters():
        assert torch.equal(rounded.get_parameter(name), weight.to(torch.bfloat16)), name
    assert {buffer.dtype for buffer in rounded.buffers()} == {torch.float32}, "rotary frequencies are not rounded"
