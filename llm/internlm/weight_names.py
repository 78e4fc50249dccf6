"""InternLM2 and Llama weight names; split and fuse the query-key-value matrix.

The table serves full checkpoints and adapters, in both directions. Source: InternLM's tools/convert2llama.py.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # the config reader imports this module and starts without torch

LLAMA_NAMES = {
    "tok_embeddings": "embed_tokens",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "output": "lm_head",
}
FUSED_QKV = "attention.wqkv"
SPLIT_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
TARGET_MODULES = {theirs.rpartition(".")[2]: (ours.rpartition(".")[2],) for theirs, ours in LLAMA_NAMES.items()} | {
    FUSED_QKV.rpartition(".")[2]: tuple(part.rpartition(".")[2] for part in SPLIT_QKV)
}
"""Layer names in adapters: InternLM2's to Llama's."""


def llama_name(name: str) -> str:
    """A weight's name in Llama. Names that both models share, and the fused matrix, do not change."""
    return _renamed(name, LLAMA_NAMES)


def internlm2_name(name: str) -> str:
    """A weight's name in InternLM2. Query, key and value, which are one matrix there, do not change."""
    return _renamed(name, {ours: theirs for theirs, ours in LLAMA_NAMES.items()})


def split_qkv(fused: "Tensor", heads: int, groups: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Split `wqkv` [(heads + 2 groups) D, ...] into queries [heads D, ...], keys and values [groups D, ...].

    Each group consists of its queries, its key and its value, D rows each.
    """
    rows = fused.unflatten(0, (groups, heads // groups + 2, -1))
    query, key, value = (part.flatten(0, 2).contiguous() for part in rows.split((heads // groups, 1, 1), dim=1))
    return query, key, value


def fuse_qkv(query: "Tensor", key: "Tensor", value: "Tensor", groups: int) -> "Tensor":
    """The inverse of `split_qkv`."""
    import torch

    return torch.cat([part.unflatten(0, (groups, -1)) for part in (query, key, value)], dim=1).flatten(0, 1)


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        renamed, found = re.subn(rf"(^|\.){re.escape(old)}\.", rf"\g<1>{new}.", name)
        if found:
            return renamed
    return name
