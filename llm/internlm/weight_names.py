"""InternLM2 and Llama weight names; fused query-key-value matrix split and fused again.

One table, for whole checkpoints and for adapters, both ways. Facts: InternLM's tools/convert2llama.py.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor  # configs are read by this table too, and start without torch

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
"""A kind of layer in InternLM2, as adapters name it, and what it is in Llama."""
INTERNLM2_NAMES = {ours: theirs for theirs, ours in LLAMA_NAMES.items()}


def llama_name(name: str) -> str:
    """A weight's name in Llama; those that both call alike, and the fused matrix, keep theirs."""
    return _renamed(name, LLAMA_NAMES)


def internlm2_name(name: str) -> str:
    """A weight's name in InternLM2; the three that are one there keep theirs."""
    return _renamed(name, INTERNLM2_NAMES)


def split_qkv(fused: "Tensor", heads: int, groups: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Rows of queries [heads D, ...], keys and values [groups D, ...] out of `wqkv`'s [(heads + 2 groups) D, ...].

    Each group holds its queries, then its key, then its value, D rows each.
    """
    rows = fused.unflatten(0, (groups, heads // groups + 2, -1))
    query, key, value = (part.flatten(0, 2).contiguous() for part in rows.split((heads // groups, 1, 1), dim=1))
    return query, key, value


def fuse_qkv(query: "Tensor", key: "Tensor", value: "Tensor", groups: int) -> "Tensor":
    """`wqkv` out of what `split_qkv` makes of it."""
    import torch

    return torch.cat([part.unflatten(0, (groups, -1)) for part in (query, key, value)], dim=1).flatten(0, 1)


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        renamed, found = re.subn(rf"(^|\.){re.escape(old)}\.", rf"\g<1>{new}.", name)
        if found:
            return renamed
    return name
