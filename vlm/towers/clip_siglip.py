"""CLIP and SigLIP vision towers of transformers, from a full model or a vision model."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from llm.checkpoints.config_json import model_type, read_json_object
from llm.checkpoints.hub import fetch, parse_remote
from llm.checkpoints.shards import weight_files
from llm.loading import silence_libraries
from tuning.errors import ModelError, first_line
from tuning.modules.quantize import linear_layers
from tuning.settings import Lora
from vlm.towers.preprocess import Preprocess
from vlm.towers.tower import Tower, TowerFacts, TowerKind

SUPPORTED = (
    "a tower is a CLIP or SigLIP model in Hugging Face layout (a folder or owner/model), open_clip:NAME/WEIGHTS "
    "or embedded"
)
_CLASSES: dict[TowerKind, tuple[Any, Any]] = {
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}


def clip_siglip_facts(name: str) -> TowerFacts:
    """As `tower_facts`; of a hub model, only config files are downloaded."""
    folder = _config_folder(name)
    _, facts = _read_config(folder)
    _read_preprocess(folder, facts.size)
    return facts


def load_clip_siglip(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """As `load_tower`."""
    remote = parse_remote(name, "tower")
    folder = fetch(remote) if remote else _config_folder(name)
    config, facts = _read_config(folder)
    config.attention_dropout = 0.0  # the same features in training and in evaluation
    preprocess = _read_preprocess(folder, facts.size)
    silence_libraries()
    try:
        network, info = _CLASSES[facts.kind][1].from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ModelError(f"tower: {name}: cannot be loaded ({first_line(error)}); check the folder's files.") from error
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"tower: {name}: {len(missing)} of its tensors are missing, such as {missing[0]}; "
            "download the model's files again."
        )
    recipe = {
        "kind": facts.kind,
        "layer": -2,
        "activation": config.hidden_act,
        "heads": config.num_attention_heads,
        "epsilon": config.layer_norm_eps,
    }
    return Tower(name, facts, network.to(device), _features, preprocess, recipe, _unused_modules(network, config))


def count_trainable(name: str, lora: Lora | None) -> int:
    """Number of trainable weights of a tower's adapter, or of the tower itself, computed from its config.

    Raises:
        ModelError: as `clip_siglip_facts`.
    """
    config, facts = _read_config(_config_folder(name))
    with torch.device("meta"):
        network = _CLASSES[facts.kind][1](config)
    unused = _unused_modules(network, config)
    if lora is not None:
        layers = (layer for part, layer in linear_layers(network) if not part.startswith(unused))
        return sum(lora.rank * sum(layer.weight.shape) for layer in layers)
    return sum(weight.numel() for part, weight in network.named_parameters() if not part.startswith(unused))


def _unused_modules(network: nn.Module, config: Any) -> tuple[str, ...]:
    """Names of the modules that features of layer -2 do not use."""
    unused = (f"encoder.layers.{config.num_hidden_layers - 1}", "post_layernorm", "head")
    return tuple(part for part, _ in network.named_modules() if part.startswith(unused))


def _features(network: Any, pixels: Tensor) -> Tensor:
    """Features of layer -2: the last layer does not run, and CLIP's class token is dropped."""
    clip = isinstance(network, CLIPVisionModel)
    hidden = network.embeddings(pixels)
    if clip:
        hidden = network.pre_layrnorm(hidden)
    for layer in network.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden[:, 1:] if clip else hidden


def _config_folder(name: str) -> Path:
    """The folder with the tower's config.json; a hub model is downloaded without its weights."""
    if (remote := parse_remote(name, "tower")) is not None:
        return fetch(remote, weights=False)
    folder = Path(name).expanduser()
    if folder.is_file():
        raise ModelError(
            f"tower: {name}: is a file; give the folder that contains config.json, or open_clip:NAME/FILE."
        )
    if not folder.is_dir():
        from open_clip import list_models

        hint = f", but open_clip has this model: write open_clip:{name}/WEIGHTS" if name in list_models() else ""
        raise ModelError(f"tower: {name}: no such folder{hint}; {SUPPORTED}.")
    if not (folder / "config.json").exists():
        if (folder / "open_clip_config.json").exists():
            raise ModelError(f"tower: {name}: this folder contains an open_clip model; write open_clip:{name}.")
        raise ModelError(f"tower: {name}: config.json is missing in this folder; {SUPPORTED}.")
    weight_files(folder)
    return folder


def _read_config(folder: Path) -> tuple[Any, TowerFacts]:
    """The config of the vision part, and the tower's facts."""
    path = folder / "config.json"
    named = model_type(folder)
    if named == "siglip2":
        raise ModelError(
            f"{path}: this SigLIP 2 model makes a different number of patches for each picture (NaFlex); "
            "use a model of fixed resolution, such as siglip2-so400m-patch14-384."
        )
    kind: TowerKind | None = next((kind for kind in _CLASSES if named in (kind, f"{kind}_vision_model")), None)
    if kind is None:
        raise ModelError(f"{path}: model_type {named!r} is not supported as a vision tower; {SUPPORTED}.")
    try:
        config = _CLASSES[kind][0].from_pretrained(folder)
    except Exception as error:  # transformers' checks raise many types
        raise ModelError(f"{path}: cannot be used ({first_line(error)}); get the model's files again.") from error
    if not 0 < config.patch_size <= config.image_size:
        raise ModelError(
            f"{path}: patch_size {config.patch_size} is not between 1 and image_size {config.image_size}; "
            "get the model's files again."
        )
    if config.num_hidden_layers < 2:
        raise ModelError(f"{path}: the model has one layer, and features come from layer -2; use a deeper tower.")
    patches = (config.image_size // config.patch_size) ** 2
    return config, TowerFacts(patches, config.hidden_size, config.image_size, kind)


def _read_preprocess(folder: Path, size: int) -> Preprocess:
    """The settings of the folder's image processor that apply to square pictures."""
    path = folder / "preprocessor_config.json"
    settings: Any = None
    if path.exists():
        settings = read_json_object(path)
    elif (path := folder / "processor_config.json").exists():
        settings = read_json_object(path).get("image_processor")
    if not isinstance(settings, dict):
        raise ModelError(f"tower: {folder}: preprocessor_config.json is missing; copy it from the original model.")
    crops = settings.get("do_center_crop") and settings.get("crop_size") is not None
    resize = _edge(settings, "size", path)
    edge = _edge(settings, "crop_size", path) if crops else resize
    for wrong, fault in (
        (edge != size, f"the result has {edge} pixels, and the tower needs {size}; correct size or crop_size"),
        (resize < edge, f"crop_size {edge} is larger than size {resize}; correct one of them"),
        (False in (settings.get("do_resize"), settings.get("do_rescale")), "do_resize and do_rescale must be true"),
        (
            abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4,
            "rescale_factor must be 1/255 (0.00392156862745098)",
        ),
    ):
        if wrong:
            raise ModelError(f"{path}: {fault}.")
    if not settings.get("do_normalize", True):
        settings |= {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    mean, std = _channels(settings, "image_mean", path), _channels(settings, "image_std", path)
    return Preprocess(edge, resize, mean, std, settings.get("resample", Image.Resampling.BICUBIC))


def _edge(settings: dict[str, Any], key: str, path: Path) -> int:
    """The side in pixels, from 336, {"shortest_edge": 336} or {"height": 336, "width": 336}."""
    size = settings.get(key)
    edges = list(size.values()) if isinstance(size, dict) else [size]
    edge = edges[0] if edges else None
    if not isinstance(edge, int) or edge < 1 or edges != [edge] * len(edges):
        raise ModelError(f"{path}: {key} must give one side in pixels, because pictures are square (got {size!r}).")
    return edge


def _channels(settings: dict[str, Any], key: str, path: Path) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, settings[key])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: {key} must be three numbers (got {settings.get(key)!r}).") from error
    return red, green, blue
