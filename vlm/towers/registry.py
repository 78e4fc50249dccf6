"""Vision towers by name: read patch count and feature width from their files, load them."""

import torch

from llm.checkpoints.embedded import EMBEDDED
from vlm.towers.clip_siglip import clip_siglip_facts, load_clip_siglip
from vlm.towers.embedded import embedded_facts, load_embedded_tower
from vlm.towers.open_clip_models import OPEN_CLIP_PREFIX, load_open_clip, open_clip_facts
from vlm.towers.tower import Tower, TowerFacts


def tower_facts(name: str) -> TowerFacts:
    """Facts about a tower, without loading its weights.

    Raises:
        ModelError: no such tower, not installed, incomplete, or not supported.
    """
    if name == EMBEDDED:
        return embedded_facts()
    return open_clip_facts(name) if name.startswith(OPEN_CLIP_PREFIX) else clip_siglip_facts(name)


def load_tower(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """Load a frozen tower in eval mode.

    Args:
        name: `embedded`, a CLIP or SigLIP folder or hub name, or `open_clip:` with NAME/TAG, NAME//FILE or a folder.

    Raises:
        ModelError: as `tower_facts`, or its weights cannot be downloaded or read.
    """
    if name == EMBEDDED:
        return load_embedded_tower(device, dtype)
    load = load_open_clip if name.startswith(OPEN_CLIP_PREFIX) else load_clip_siglip
    return load(name, device, dtype)
