"""Vision tower: the interface that all towers share, pixels in, patch features out.

I pictures, H x W pixels, P patches, V width of a patch's features.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor, nn

from vlm.towers.preprocess import Preprocess

TOWER_FOLDER = "tower"  # where a run's adapter folder holds the tower's own
TowerKind = Literal["embedded", "clip", "siglip", "open_clip"]


@dataclass(frozen=True, slots=True)
class TowerFacts:
    """What is known of a tower without its weights.

    Args:
        patches: P, features of one picture.
        width: V, length of one feature.
        size: pixels along each side of what it is given.
        kind: which library's network it is.
    """

    patches: int
    width: int
    size: int
    kind: TowerKind

    @property
    def trainable(self) -> bool:
        """Whether its attention and MLP are linear layers that an adapter reaches, and it can be written as a model.

        open_clip's attention multiplies by its weights without calling a layer, and the embedded network convolves.
        """
        return self.kind in ("clip", "siglip")


class Tower(nn.Module):
    """A frozen vision tower with the preprocessing that belongs to its weights.

    Args:
        name: as it was asked for.
        network: the library's own module, complete; an adapter goes on it.
        features: float[I, 3, H, W] through the network to float[I, P, V], nothing computed that is not needed.
        recipe: whatever changes features beside weights and preprocessing: layer, activation.
        idle: names of the network's modules that `features` never runs; an adapter on them would not learn.
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
        self.network = network.requires_grad_(False)
        self.eval()
        self.unused_modules = unused_modules
        self._features = features
        self._preprocess = preprocess
        self.fingerprint = _key(network, preprocess, recipe)

    @property
    def patches(self) -> int:
        """P, features of one picture."""
        return self.facts.patches

    @property
    def width(self) -> int:
        """V, length of one feature."""
        return self.facts.width

    @property
    def size(self) -> int:
        """H and W of `forward`'s pixels."""
        return self.facts.size

    @property
    def preprocessing(self) -> Preprocess:
        """The settings of `preprocess`."""
        return self._preprocess

    def preprocess(self, picture: Image.Image) -> Tensor:
        """A picture in RGB, of any size, as float32[3, H, W]."""
        return self._preprocess(picture)

    def forward(self, pixels: Tensor) -> Tensor:
        """float[I, 3, H, W], on any device and of any type, to features [I, P, V] of the network's device and type."""
        weight = next(self.network.parameters())
        return self._features(self.network, pixels.to(weight.device, weight.dtype))

    def train(self, mode: bool = True) -> "Tower":
        """Training mode is for adapters' dropout and checkpointing: a convolutional tower's statistics stay frozen."""
        return super().train(mode and self.facts.trainable)


def _key(network: nn.Module, preprocess: Preprocess, recipe: Mapping[str, object]) -> str:
    """sha256 over all that features depend on; the weights count as loaded, in their type."""
    digest = hashlib.sha256(json.dumps([repr(preprocess), dict(recipe)], sort_keys=True, default=str).encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
