"""Convert LoRA adapters between InternLM2's fused layers and Llama's layers, without rounding.

To split a fused layer, query, key and value each get a copy of A and their own rows of B. To fuse three layers, their A
are stacked, and their B are the blocks of a block-diagonal matrix, so that the rank is the sum of the three ranks.

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


def load_llama_or_internlm2_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The base model with a saved adapter, which may be trained on Llama's or on InternLM2's layers.

    Raises:
        ModelError: the folder contains no adapter, or the adapter has other shapes or cannot be split.
    """
    config = read_adapter_config(folder)
    targets = config.get("target_modules")
    if not isinstance(targets, list) or TARGET_MODULES.keys().isdisjoint(targets) or model.config.model_type != "llama":
        return load_adapter(model, folder)
    state = split_adapter(read_adapter_weights(folder), model.config, str(folder))
    return attach_adapter_weights(model, state, _split_patterns(config, folder), str(folder))


def has_fused_qkv(state: Mapping[str, Tensor]) -> bool:
    """Whether an adapter is for InternLM2's layers."""
    return any(FUSED_QKV in name or llama_name(name) != name for name in state)


def split_adapter(state: Mapping[str, Tensor], config: Any, source: str) -> dict[str, Tensor]:
    """An adapter for Llama's layers, under PEFT's names. An adapter that is for Llama's layers does not change.

    Args:
        config: the Llama configuration of the base model.
        source: of the adapter, for errors.

    Raises:
        ModelError: the adapter is for a model of other shapes.
    """
    heads, groups, size = _attention_shape(config)
    split: dict[str, Tensor] = {}
    for name, value in state.items():
        if FUSED_QKV not in name:
            split[llama_name(name)] = value
            continue
        parts = (value, value.clone(), value.clone())  # separate memory, because safetensors refuses shared tensors
        if ".lora_B." in name:
            if len(value) != (heads + 2 * groups) * size:
                raise ModelError(f"{source}: this adapter is for another model ({name} has {len(value)} rows).")
            parts = split_qkv(value, heads, groups)
        split |= {name.replace(FUSED_QKV, layer): part for layer, part in zip(SPLIT_QKV, parts, strict=True)}
    return split


def fuse_adapter(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """An adapter for InternLM2's layers, under PEFT's names. The rank of `wqkv` is the sum of the three ranks."""
    heads, groups, size = _attention_shape(config)
    rows = [count * size for count in (heads, groups, groups)]
    fused: dict[str, Tensor] = {}
    fused_names: set[str] = set()
    for name, value in state.items():
        part = next((part for part in SPLIT_QKV if part in name), None)
        if part is None:
            fused[internlm2_name(name)] = value
        else:
            fused_names.add(name.replace(part, FUSED_QKV).replace(".lora_B.", ".lora_A."))
    for name_a in sorted(fused_names):
        name_b = name_a.replace(".lora_A.", ".lora_B.")
        all_a = (state.get(name_a.replace(FUSED_QKV, layer)) for layer in SPLIT_QKV)
        all_b = (state.get(name_b.replace(FUSED_QKV, layer)) for layer in SPLIT_QKV)
        blocks = [torch.zeros(count, 0) if b is None else b.float() for b, count in zip(all_b, rows, strict=True)]
        query, key, value = torch.block_diag(*blocks).split(rows)
        fused[name_a] = torch.cat([a for a in all_a if a is not None])
        fused[name_b] = fuse_qkv(query, key, value, groups)
    return fused


def _attention_shape(config: Any) -> tuple[int, int, int]:
    """Number of query heads, number of key-value groups, rows of one head."""
    heads = config.num_attention_heads
    groups = config.num_key_value_heads or heads
    return heads, groups, getattr(config, "head_dim", None) or config.hidden_size // heads


def _split_patterns(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The adapter's configuration with Llama's layer names in its rank and alpha patterns."""
    split = dict(config)
    for key in ("rank_pattern", "alpha_pattern"):
        given: Mapping[str, int] = config.get(key) or {}
        if odd := sorted(given.keys() - TARGET_MODULES.keys()):
            raise ModelError(
                f"{folder}: {key} contains {odd[0]}, which is not a layer of InternLM2; save the adapter again."
            )
        split[key] = {ours: value for theirs, value in given.items() for ours in TARGET_MODULES[theirs]}
    return split
