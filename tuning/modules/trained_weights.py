"""Trained weights of one network: a LoRA adapter, all weights, or none. Saves and loads them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from tuning.modules.lora import ADAPTER_WEIGHTS, save_adapter
from tuning.modules.pth import write_pth

FULL_WEIGHTS = "weights.pt"
NetworkT = TypeVar("NetworkT", bound=nn.Module)
NetworkT_co = TypeVar("NetworkT_co", bound=nn.Module, covariant=True)


class TrainedWeights(Protocol[NetworkT_co]):
    """The part of a checkpoint that belongs to one network, in fp32."""

    @property
    def network(self) -> NetworkT_co:
        """The network, with its adapter if it has one."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights into a folder."""
        ...

    def load(self, folder: Path) -> None:
        """Read back what `save` wrote."""
        ...


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """The weights of a PEFT adapter.

    Args:
        base: name of the base model; `adapter_config.json` contains it with its `revision`.
    """

    network: PeftModel
    base: str
    revision: str | None = None

    def save(self, folder: Path) -> None:
        """Write `adapter_model.safetensors` and `adapter_config.json`."""
        save_adapter(self.network, folder, self.base, self.revision)

    def load(self, folder: Path) -> None:
        """Load saved weights into the attached adapter."""
        set_peft_model_state_dict(self.network, load_file(folder / ADAPTER_WEIGHTS))


@dataclass(frozen=True, slots=True)
class FullWeights(Generic[NetworkT]):
    """Every trainable weight of a network, in its own dtype."""

    network: NetworkT

    def save(self, folder: Path) -> None:
        """Write `weights.pt`: every trainable weight by name. A weight that two layers share is written once."""
        named = self.network.named_parameters()
        weights = {name: parameter.detach() for name, parameter in named if parameter.requires_grad}
        write_pth(weights, folder / FULL_WEIGHTS)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Copy the saved weights into the network, one tensor at a time."""
        weights = torch.load(folder / FULL_WEIGHTS, map_location="cpu", mmap=True, weights_only=True)
        for name, weight in weights.items():
            self.network.get_parameter(name).copy_(weight)


@dataclass(frozen=True, slots=True)
class FrozenWeights(Generic[NetworkT]):
    """A network that is not trained: nothing to save or load."""

    network: NetworkT

    def save(self, folder: Path) -> None:
        """Write nothing."""

    def load(self, folder: Path) -> None:
        """Read nothing."""


def enable_full_finetuning(network: NetworkT, unused_modules: Sequence[str] = ()) -> FullWeights[NetworkT]:
    """Make every weight trainable. All weights must be fp32, because 16 bits lose small updates.

    Args:
        unused_modules: prefixes of layers that never run and stay frozen.
    """
    for name, parameter in network.named_parameters():
        assert parameter.dtype == torch.float32, name
        parameter.requires_grad_(not name.startswith(tuple(unused_modules)))
    return FullWeights(network)
