"""Vision towers: pixels [I, 3, H, W] to features [I, P, V] of layer -2, without the class token (arXiv 2310.03744)."""

import torch

from tuning.errors import ModelError
from vlm.tower import Tower, TowerFacts
from vlm.towers_embedded import NAME as EMBEDDED
from vlm.towers_embedded import embedded_facts, load_embedded

__all__ = ["Tower", "TowerFacts", "load_tower", "tower_facts"]


def tower_facts(name: str) -> TowerFacts:
    """What is known of a tower without loading its weights.

    Raises:
        ModelError: no such tower, not installed, incomplete, or of a kind that is not supported.
    """
    if name == EMBEDDED:
        return embedded_facts()
    raise ModelError(f"tower: {name}: no such folder.")


def load_tower(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """A frozen tower in eval mode.

    Raises:
        ModelError: as `tower_facts`, or its weights cannot be read.
    """
    if name == EMBEDDED:
        return load_embedded(device, dtype)
    raise ModelError(f"tower: {name}: no such folder.")
