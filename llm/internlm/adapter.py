"""LoRA adapters of InternLM2 layers as adapters of Llama layers, and back, exactly.

A fused layer's A belongs to queries, keys and values alike, and of its B each has its rows. The other way the three are
one adapter of their ranks' sum: their A on top of each other, each B in columns of its own.

Shapes: R rank, I inputs and O outputs of a layer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from llm.internlm.weight_names import (
    FUSED_QKV,
    SPLIT_QKV,
    TARGET_MODULES,
    fuse_qkv,
    internlm2_name,
    llama_name,
    split_qkv,
)
from tuning.errors import ModelError
from tuning.modules.lora import attach_adapter_weights, load_adapter, read_adapter_config, read_adapter_weights

_INTERNLM2_TARGETS = {"wqkv", "wo", "w1", "w2", "w3"}  # what Llama has no layers of that name for


def load_llama_or_internlm2_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base with a saved adapter on it, also one that was trained on InternLM2's own layers.

    Raises:
        ModelError: no adapter in the folder, one for a model of other shapes, or one that cannot be split.
    """
    config = read_adapter_config(folder)
    targets = config.get("target_modules")
    if not isinstance(targets, list) or _INTERNLM2_TARGETS.isdisjoint(targets) or model.config.model_type != "llama":
        return load_adapter(model, folder)
    state = split_adapter(read_adapter_weights(folder), model.config, str(folder))
    return attach_adapter_weights(model, state, _split_patterns(config, folder), str(folder))


def has_fused_qkv(state: Mapping[str, Tensor]) -> bool:
    """Whether an adapter's names are those of InternLM2's layers."""
    return any(FUSED_QKV in name or llama_name(name) != name for name in state)


def split_adapter(state: Mapping[str, Tensor], config: Any, source: str) -> dict[str, Tensor]:
    """An adapter by PEFT's names, on Llama's layers; one that is on them already stays as it is.

    Args:
        config: the base's, as a Llama.
        source: what it is called in an error.

    Raises:
        ModelError: it is for a model of other shapes.
    """
    heads, groups, size = _attention_shape(config)
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        if FUSED_QKV not in name:
            split[llama_name(name)] = value
            continue
        parts = (value, value.clone(), value.clone())  # each its own memory, or it cannot be saved
        if ".lora_B." in name:
            if len(value) != (heads + 2 * groups) * size:
                raise ModelError(f"{source}: this adapter is for another model ({name} has {len(value)} rows).")
            parts = split_qkv(value, heads, groups)
        split |= {name.replace(FUSED_QKV, layer): part for layer, part in zip(SPLIT_QKV, parts, strict=True)}
    return split


def fuse_adapter(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """An adapter by PEFT's names, on InternLM2's layers; `wqkv` gets the sum of the ranks that q, k and v have."""
    heads, groups, size = _attention_shape(config)
    rows = {layer: count * size for layer, count in zip(SPLIT_QKV, (heads, groups, groups), strict=True)}
    fused = {
        internlm2_name(name): value for name, value in state.items() if not any(part in name for part in SPLIT_QKV)
    }
    places = {
        name.replace(part, FUSED_QKV).replace(".lora_B.", ".lora_A.")
        for name in state
        for part in SPLIT_QKV
        if part in name
    }
    for place in sorted(places):
        down = {layer: state.get(place.replace(FUSED_QKV, layer)) for layer in SPLIT_QKV}
        ranks = [0 if part is None else len(part) for part in down.values()]
        before = 0
        up: list[Tensor] = []
        for (layer, part), rank in zip(down.items(), ranks, strict=True):
            wide = torch.zeros(rows[layer], sum(ranks))
            if part is not None:
                wide[:, before : before + rank] = state[place.replace(FUSED_QKV, layer).replace(".lora_A.", ".lora_B.")]
            up.append(wide)
            before += rank
        fused[place] = torch.cat([part for part in down.values() if part is not None])
        query, key, value = up
        fused[place.replace(".lora_A.", ".lora_B.")] = fuse_qkv(query, key, value, groups)
    return fused


def _attention_shape(config: Any) -> tuple[int, int, int]:
    """Query heads, groups, and rows of one head."""
    heads = config.num_attention_heads
    groups = config.num_key_value_heads or heads
    return heads, groups, getattr(config, "head_dim", None) or config.hidden_size // heads


def _split_patterns(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Ranks and scales of single kinds of layers, by Llama's names for them."""
    split = dict(config)
    for key in ("rank_pattern", "alpha_pattern"):
        given: Mapping[str, int] = config.get(key) or {}
        if odd := sorted(given.keys() - TARGET_MODULES.keys()):
            raise ModelError(
                f"{folder}: {key} names {odd[0]}, no kind of layer of InternLM2's; save the adapter again."
            )
        split[key] = {ours: value for theirs, value in given.items() for ours in TARGET_MODULES[theirs]}
    return split
