"""Quantized layers: which they are, and equal losses before and after generation."""

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit

from llm.checkpoints.embedded import embedded_weights
from llm.generation import generate_answers
from llm.loading import load_model, load_template
from llm.model import LanguageModel
from tuning.data.conversation import single_turn
from tuning.modules import quantize
from tuning.modules.lora import attach_adapter
from tuning.modules.quantize import choose_device
from tuning.settings import Lora, Quant
from tuning.training.samples import collate

needs_embedded = pytest.mark.skipif(embedded_weights() is None, reason="the embedded weights are not installed")


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_linear_layers_are_quantized_except_the_head(tiny_model, bits, compute, monkeypatch):
    monkeypatch.setattr(quantize, "MEMORY_SHARE", 0)
    loaded = load_model(str(tiny_model), load_template(str(tiny_model), None), Quant(bits=bits), "cpu")
    report = loaded.quant_report
    assert (report.quantized, report.total) == (0 if bits == 16 else 14, 15)
    assert report.not_quantized == (() if bits == 16 else ("lm_head",))
    packed = [module for module in loaded.model.modules() if isinstance(module, Linear4bit)]
    assert len(packed) == (14 if bits == 4 else 0)
    assert all(module.weight.quant_type == "nf4" and module.weight.compress_statistics for module in packed)
    template = loaded.template
    sample = template.encode(single_turn("who are you?", "yes"), 100)
    module = LanguageModel(attach_adapter(loaded.model, Lora(rank=2), 0), loaded.compute_dtype)
    loss, labels = module(collate([[sample]], template.pad_id))
    loss.backward()
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    assert all(parameter.dtype == torch.float32 and parameter.grad is not None for _, parameter in trained)
    assert len(trained) == 2 * 14 and not any("lm_head" in name for name, _ in trained)
    assert torch.isfinite(loss) and int(labels) == int(sample.loss_mask.sum())


@needs_embedded
@pytest.mark.parametrize("memory_share", [0, 0.5])
def test_generation_does_not_change_the_loss_of_the_embedded_model(monkeypatch, memory_share, compute):
    """bitsandbytes repacks 4-bit weights in eval mode on some CPUs; training with repacked weights would be wrong."""
    monkeypatch.setattr(quantize, "MEMORY_SHARE", memory_share)
    template = load_template("embedded", "You are a helpful assistant.")
    loaded = load_model("embedded", template, Quant(bits=4), "cpu")
    module = LanguageModel(loaded.model, loaded.compute_dtype)
    batch = collate(
        [[template.encode(single_turn("What is the capital of France?", "The capital of France is Paris."), 100)]], 0
    )
    with torch.no_grad():
        before, labels = module.train()(batch)
        (answer,) = generate_answers(loaded.model, template, [single_turn("What is the capital of France?")], 16)
        after, _ = module.train()(batch)
    assert "Paris" in answer.text
    assert float(before) == float(after)
    assert float(before) / int(labels) < 1.0


def test_dequantized_weights_give_bit_equal_loss_and_gradients(tiny_model, compute, monkeypatch):
    found = []
    for memory_share in (0, 0.5):
        monkeypatch.setattr(quantize, "MEMORY_SHARE", memory_share)
        loaded = load_model(str(tiny_model), load_template(str(tiny_model), None), Quant(bits=4), "cpu")
        assert loaded.quant_report.dequantized == bool(memory_share)
        assert any(isinstance(module, Linear4bit) for module in loaded.model.modules()) != bool(memory_share)
        module = LanguageModel(attach_adapter(loaded.model, Lora(rank=2), 0), loaded.compute_dtype)
        loss, _ = module(collate([[loaded.template.encode(single_turn("who are you?", "yes"), 100)]], 0))
        loss.backward()
        found.append([loss, *(each.grad for each in module.parameters() if each.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_adapter_gradients_are_fp32_in_bf16_compute(tiny_model):
    loaded = load_model(str(tiny_model), load_template(str(tiny_model), None), Quant(bits=4, compute="bf16"), "cpu")
    module = LanguageModel(attach_adapter(loaded.model, Lora(rank=2), 0), loaded.compute_dtype)
    sample = loaded.template.encode(single_turn("who are you?", "yes"), 100)
    loss, _ = module(collate([[sample]], 0))
    loss.backward()
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}


def test_missing_gpu_is_refused(monkeypatch):
    from tuning.errors import DeviceError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="torch sees no GPU"):
        choose_device("cuda")
