"""Every weight of a network trained: held in fp32 whatever it computes in, and kept exactly in checkpoints."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from tuning.modules.pth import write_pth

FULL_WEIGHTS = "weights.pt"


def enable_full_finetuning(network: nn.Module, unused_modules: Sequence[str] = ()) -> None:
    """Have every weight trained. All must be held in fp32, for small updates are lost in 16 bits.

    Args:
        idle: names of layers that never run, and so learn nothing.
    """
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32, name
        parameter.requires_grad_(not name.startswith(tuple(unused_modules)))


def save_full_weights(network: nn.Module, folder: Path) -> None:
    """`weights.pt`: every trained weight by its name, as it is; one that two layers share is there once."""
    weights = {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}
    write_pth(weights, folder / FULL_WEIGHTS)


@torch.no_grad()
def load_full_weights(network: nn.Module, folder: Path) -> None:
    """Put back what `save_full_weights` wrote, a weight at a time."""
    weights = torch.load(folder / FULL_WEIGHTS, map_location="cpu", mmap=True, weights_only=True)
    for name, weight in weights.items():
        network.get_parameter(name).copy_(weight)
