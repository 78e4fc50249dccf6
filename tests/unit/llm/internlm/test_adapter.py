"""Adapters on InternLM2's fused layers and on Llama's split layers are equivalent."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny_internlm import make_internlm2
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from llm.internlm.adapter import fuse_adapter, has_fused_qkv, load_llama_or_internlm2_adapter, split_adapter
from llm.internlm.loading import load_internlm
from llm.internlm.weight_names import FUSED_QKV, SPLIT_QKV, fuse_qkv
from tuning.errors import ModelError

RANK, ALPHA = 4, 6
IDS = torch.arange(40)[None]


@pytest.fixture(params=[False, True], ids=["plain", "biased"])
def internlm2(request: pytest.FixtureRequest, tiny_model: Path, tmp_path: Path) -> Path:
    """An InternLM2 checkpoint in fp32 with grouped-query attention, without and with biases."""
    config = LlamaConfig.from_pretrained(tiny_model, attention_bias=request.param, initializer_range=0.05)
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    shutil.copytree(tiny_model, tmp_path / "llama")
    model.save_pretrained(tmp_path / "llama")
    return make_internlm2(tmp_path / "llama", tmp_path / "internlm2")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def make_fused_adapter(base: Path, folder: Path, **changes: object) -> dict[str, torch.Tensor]:
    """Writes an adapter folder as XTuner does: on every linear layer of the base and on its head."""
    layers = {
        name.removesuffix(".weight"): value.shape
        for name, value in weights(base).items()
        if value.dim() == 2 and "embeddings" not in name
    }
    state: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs) in layers.items():
        state[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, inputs) * 0.1
        state[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, RANK) * 0.1
    config = {
        "base_model_name_or_path": str(base),
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["wqkv", "wo", "w1", "w2", "w3", "output"],
    }
    folder.mkdir()
    torch.save(state, folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return state


def test_logits_with_a_fused_adapter_equal_logits_of_the_merged_fused_weights(internlm2, tmp_path):
    state = make_fused_adapter(internlm2, tmp_path / "adapter")
    changed = tmp_path / "changed"
    shutil.copytree(internlm2, changed)
    for file in changed.glob("*.safetensors"):
        values = load_file(file)
        for name in values:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            if f"{at}.lora_A.weight" in state:
                values[name] += ALPHA / RANK * state[f"{at}.lora_B.weight"] @ state[f"{at}.lora_A.weight"]
        save_file(values, file, metadata={"format": "pt"})
    plain = load_internlm(internlm2, dtype=torch.float32)
    with torch.no_grad():
        before = plain(IDS).logits
        expected = load_internlm(changed, dtype=torch.float32)(IDS).logits
        adapted = load_llama_or_internlm2_adapter(plain, tmp_path / "adapter")(input_ids=IDS).logits
    assert (expected - before).abs().max() > 0.01
    assert torch.allclose(adapted, expected, rtol=0, atol=1e-5)


def linears(layers: dict[str, tuple[int, int]]) -> nn.Module:
    """A module with zero linear layers of the given names and shapes."""
    root = nn.Module()
    for name, (outputs, inputs) in layers.items():
        module = root
        *parents, last = name.split(".")
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        layer = nn.Linear(inputs, outputs, bias=False)
        nn.init.zeros_(layer.weight)
        module.add_module(last, layer)
    return root


@settings(max_examples=20, deadline=None)
@given(
    groups=st.integers(1, 3),
    times=st.integers(1, 3),
    rank=st.integers(1, 3),
    adapted=st.sets(st.sampled_from(SPLIT_QKV), min_size=1),
)
def test_fused_and_split_adapters_add_the_same_weights(groups: int, times: int, rank: int, adapted: set[str]) -> None:
    config = LlamaConfig(
        hidden_size=8 * groups * times, num_attention_heads=groups * times, num_key_value_heads=groups, head_dim=8
    )
    inputs = config.hidden_size
    outputs = dict(zip(SPLIT_QKV, (8 * groups * times, 8 * groups, 8 * groups), strict=True))
    at = "base_model.model.model.layers.0."
    state: dict[str, torch.Tensor] = {}
    for layer in sorted(adapted):
        state[f"{at}{layer}.lora_A.weight"] = torch.randn(rank, inputs)
        state[f"{at}{layer}.lora_B.weight"] = torch.randn(outputs[layer], rank)
    state |= {f"{at}mlp.up_proj.lora_A.weight": torch.ones(1, 1), f"{at}mlp.up_proj.lora_B.weight": torch.ones(1, 1)}

    def added(given: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
        if f"{at}{layer}.lora_A.weight" not in given:
            return torch.zeros(outputs[layer], inputs)
        return given[f"{at}{layer}.lora_B.weight"] @ given[f"{at}{layer}.lora_A.weight"]

    fused = fuse_adapter(state, config)
    assert has_fused_qkv(fused) and not has_fused_qkv(state)
    assert f"{at}feed_forward.w3.lora_A.weight" in fused
    assert len(fused[f"{at}{FUSED_QKV}.lora_A.weight"]) == rank * len(adapted)
    expected = fuse_qkv(*(added(state, layer) for layer in SPLIT_QKV), groups)
    assert torch.allclose(added(fused, FUSED_QKV), expected, atol=1e-5)
    again = split_adapter(fused, config, "it")
    assert all(torch.allclose(added(again, layer), added(state, layer), atol=1e-5) for layer in SPLIT_QKV)


def test_peft_loads_a_fused_adapter_with_a_rank_pattern(tmp_path):
    """The adapter as exported for XTuner: `wqkv` has three times the rank and alpha of the other layers."""
    layers = {"model.layers.0.attention.wqkv": (32, 16), "model.layers.0.attention.wo": (16, 16)}
    state: dict[str, torch.Tensor] = {}
    for name, (outputs, inputs) in layers.items():
        rank = 3 * RANK if "wqkv" in name else RANK
        state[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, inputs)
        state[f"base_model.model.{name}.lora_B.weight"] = torch.randn(outputs, rank)
    patterns = {"rank_pattern": {"wqkv": 3 * RANK}, "alpha_pattern": {"wqkv": 3 * ALPHA}}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["wqkv", "wo"], **patterns}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    torch.save(state, tmp_path / "adapter_model.bin")
    model = PeftModel.from_pretrained(linears(layers), str(tmp_path)).merge_and_unload()
    for name in layers:
        at = f"base_model.model.{name}"
        expected = ALPHA / RANK * state[f"{at}.lora_B.weight"] @ state[f"{at}.lora_A.weight"]
        assert torch.allclose(model.get_submodule(name).weight, expected, atol=1e-5)
    wide = LlamaConfig(hidden_size=16, intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=8)
    llama = LlamaForCausalLM(LlamaConfig(**wide.to_dict() | {"num_hidden_layers": 1, "vocab_size": 9}))
    before = llama.model.layers[0].self_attn.k_proj.weight.detach().clone()
    split = load_llama_or_internlm2_adapter(llama, tmp_path).merge_and_unload()
    at = "base_model.model.model.layers.0.attention.wqkv"
    expected = ALPHA / RANK * state[f"{at}.lora_B.weight"] @ state[f"{at}.lora_A.weight"]
    assert torch.allclose(split.model.layers[0].self_attn.k_proj.weight - before, expected[16:24], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"use_dora": True}, "more than LoRA's two matrices"),
        ({"alpha_pattern": {"layers.1.wo": 3}}, "alpha_pattern contains layers.1.wo"),
        ({"r": 3}, "does not fit the model"),
    ],
)
def test_adapter_that_cannot_be_split_is_refused(internlm2, tmp_path, changes, reason):
    make_fused_adapter(internlm2, tmp_path / "adapter", **changes)
    with pytest.raises(ModelError, match=reason):
        load_llama_or_internlm2_adapter(load_internlm(internlm2, dtype=torch.float32), tmp_path / "adapter")


def test_an_adapter_of_another_model_is_refused(internlm2, tmp_path):
    state = make_fused_adapter(internlm2, tmp_path / "adapter")
    state["base_model.model.model.layers.0.attention.wqkv.lora_B.weight"] = torch.ones(96, RANK)
    torch.save(state, tmp_path / "adapter" / "adapter_model.bin")
    with pytest.raises(ModelError, match=r"another model \(.*wqkv.lora_B.weight has 96 rows"):
        load_llama_or_internlm2_adapter(load_internlm(internlm2, dtype=torch.float32), tmp_path / "adapter")
