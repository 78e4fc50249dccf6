"""A tiny Llama in InternLM2's layout, made without the code under test."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG = {"model_type": "internlm2", "rope_theta": 10000, "rope_scaling": None}
NAMES = {
    "model.embed_tokens": "model.tok_embeddings",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "lm_head": "output",
}


def fuse(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, groups: int, width: int) -> torch.Tensor:
    """The rows of `wqkv` in InternLM2's order, one group at a time."""
    per_group = query.shape[0] // groups
    rows = []
    for group in range(groups):
        rows.append(query[group * per_group : (group + 1) * per_group])
        rows += [each[group * width : (group + 1) * width] for each in (key, value)]
    return torch.cat(rows)


def make_internlm2(tiny_model: Path, folder: Path) -> Path:
    """A copy of a Llama checkpoint in InternLM2's layout, in two shards."""
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    values = json.loads((folder / "config.json").read_text())
    kept = {
        key: values[key] for key in values if not key.startswith(("rope", "attention_bias", "mlp_bias", "head_dim"))
    }
    (folder / "config.json").write_text(json.dumps(kept | CONFIG | {"bias": values.get("attention_bias", False)}))
    weights = load_file(tiny_model / "model.safetensors")
    made: dict[str, torch.Tensor] = {}
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            parts = [weights[name.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")]
            made[name.replace("self_attn.q_proj", "attention.wqkv")] = fuse(*parts, groups=2, width=16)
            continue
        for new, old in NAMES.items():
            name = name.replace(new, old)
        made[name] = tensor
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    halves = [dict(list(made.items())[start::2]) for start in (0, 1)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, folder / file, metadata={"format": "pt"})
    index = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder
