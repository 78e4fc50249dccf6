"""Vision tower: the interface that all towers share, from pixels to patch features.

Shapes: I pictures, H x W pixels, P patches, V width of a patch's features.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from vlm.towers.preprocess import Preprocess

TOWER_FOLDER = "tower"  # in a run's adapter folder: the adapter or the weights of the tower
TowerKind = Literal["embedded", "clip", "siglip", "open_clip"]


@dataclass(frozen=True, slots=True)
class TowerFacts:
    """Facts about a tower that are known without its weights.

    Args:
        patches: P, features of one picture.
        width: V, length of one feature.
        size: input pixels along each side.
        kind: the library of its network.
    """

    patches: int
    width: int
    size: int
    kind: TowerKind

    @property
    def trainable(self) -> bool:
        """Whether LoRA can adapt its attention and MLP, and it can be saved as a model.

        open_clip's attention has no linear layers for LoRA, and the embedded network is convolutional.
        """
        return self.kind in ("clip", "siglip")


class Tower(nn.Module):
    """A frozen vision tower with the preprocessing of its weights.

    Args:
        name: as in the task.
        network: the library's own module; adapters are attached to it.
        features: maps the network and float[I, 3, H, W] to float[I, P, V].
        preprocess: maps an RGB picture of any size to float32[3, H, W].
        recipe: other settings that change the features, such as layer and activation.
        unused_modules: names of modules that `features` never runs; they are not trained.
    """

    def __init__(
        self,
        name: str,
        facts: TowerFacts,
        network: nn.Module,
        features: Callable[[nn.Module, Tensor], Tensor],
        preprocess: Preprocess,
        recipe: Mapping[str, object],
        unused_modules: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.name = name
        self.facts = facts
        self.patches, self.width = facts.patches, facts.width
        self.network = network.requires_grad_(False)
        self.eval()
        self.unused_modules = unused_modules
        self.preprocess = preprocess
        self._features = features
        self.fingerprint = _fingerprint(network, preprocess, recipe)

    def forward(self, pixels: Tensor) -> Tensor:
        """float[I, 3, H, W] on any device -> features [I, P, V] in the network's dtype, on its device."""
        weight = next(self.network.parameters())
        return self._features(self.network, pixels.to(weight.device, weight.dtype))

    def train(self, mode: bool = True) -> "Tower":
        """Set train mode, for LoRA dropout and checkpointing; batch-norm statistics of convolutions stay frozen."""
        return super().train(mode and self.facts.trainable)


def _fingerprint(network: nn.Module, preprocess: Preprocess, recipe: Mapping[str, object]) -> str:
    """sha256 of everything that the features depend on, with the weights in their loaded dtype."""
    digest = hashlib.sha256(json.dumps([repr(preprocess), dict(recipe)], sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
