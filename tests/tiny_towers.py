"""Tiny towers with random weights, and pictures for them."""

from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModel

from vlm.towers.registry import load_tower
from vlm.towers.tower import Tower

CPU = torch.device("cpu")
CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "initializer_range": 0.5,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 9,
}
MODEL_CFG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 42, "layers": 3, "width": 32, "head_width": 8, "patch_size": 14, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 9, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS_CFG = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bicubic"}


def as_open_clip(vision: CLIPVisionModel) -> dict[str, Tensor]:
    """CLIP's vision weights with open_clip's names."""
    state = vision.state_dict()
    named = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "proj": torch.zeros(32, 16),
    }
    for side in ("weight", "bias"):
        named[f"ln_pre.{side}"] = state[f"pre_layrnorm.{side}"]
        named[f"ln_post.{side}"] = state[f"post_layernorm.{side}"]
        for layer in range(3):
            target, source = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            heads = [state[f"{source}.self_attn.{part}_proj.{side}"] for part in "qkv"]
            named[f"{target}.attn.in_proj_{side}"] = torch.cat(heads)
            named[f"{target}.attn.out_proj.{side}"] = state[f"{source}.self_attn.out_proj.{side}"]
            for theirs, ours in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1")):
                named[f"{target}.{theirs}.{side}"] = state[f"{source}.{ours}.{side}"]
            named[f"{target}.mlp.c_proj.{side}"] = state[f"{source}.mlp.fc2.{side}"]
    return {f"visual.{name}": tensor.clone() for name, tensor in named.items()}


def loaded(name: str | Path, dtype: torch.dtype = torch.float32) -> Tower:
    return load_tower(str(name), CPU, dtype)


def picture(width: int = 57, height: int = 31, seed: int = 0) -> Image.Image:
    """Smooth random colors: resizing filters give similar results, unlike for noise."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
