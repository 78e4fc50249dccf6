"""Projector: LLaVA-1.5's MLP from tower width to language-model width.

Shapes: I pictures, P patches, V width of the tower, D width of the language model.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import nn

from tuning.atomic import atomic_writer

PROJECTOR_FILE = "projector.safetensors"


class Projector(nn.Module):
    """LLaVA-1.5's `mlp2x_gelu`: two linear layers with exact GELU between them, under transformers' names."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, hidden)
        self.linear_2 = nn.Linear(hidden, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """float[I, P, V] -> float[I, P, D]."""
        return self.linear_2(F.gelu(self.linear_1(features)))


def new_projector(width: int, hidden: int, seed: int) -> Projector:
    """A projector with random weights that depend only on the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Projector(width, hidden)


def save_projector(projector: Projector, folder: Path) -> None:
    """Write `projector.safetensors` in fp32, with sorted keys, so that equal runs give equal bytes."""
    state = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in projector.named_parameters()}
    with atomic_writer(folder / PROJECTOR_FILE) as stream:
        stream.write(save(dict(sorted(state.items())), metadata={"format": "pt"}))


def load_projector(projector: Projector, folder: Path) -> None:
    """Read what `save_projector` wrote."""
    projector.load_state_dict(load_file(folder / PROJECTOR_FILE))
