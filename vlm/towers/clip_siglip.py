"""CLIP and SigLIP vision towers of transformers, from a full model or a vision model."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from llm.checkpoints.config_json import model_type, read_json_object
from llm.checkpoints.hub import fetch, parse_remote
from tuning.errors import ModelError, first_line
from tuning.modules.quantize import linear_layers
from tuning.settings import Lora
from vlm.towers.preprocess import Preprocess
from vlm.towers.tower import Tower, TowerFacts, TowerKind

SUPPORTED = (
    "towers are CLIP and SigLIP models in Hugging Face layout (a folder or owner/model), open_clip:NAME/WEIGHTS "
    "and embedded"
)
KINDS: dict[str, TowerKind] = {
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
}


def clip_siglip_facts(name: str) -> TowerFacts:
    """As `tower_facts`; of a hub name, only the settings' files are fetched."""
    folder = _config_folder(name)
    config, kind = _vision_config(folder)
    _read_preprocess(folder, config.image_size)
    return _facts(config, kind)


def load_clip_siglip(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """As `load_tower`."""
    from llm.loading import silence_libraries

    remote = parse_remote(name, "tower")
    folder = fetch(remote) if remote else _config_folder(name)
    config, kind = _vision_config(folder)
    config.attention_dropout = 0.0  # a tower's features are the same in training and in use
    preprocess = _read_preprocess(folder, config.image_size)
    silence_libraries()
    try:
        network, notes = _network_class(kind).from_pretrained(
            folder, config=config, dtype=dtype, attn_implementation="sdpa", output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise ModelError(f"tower: {name}: cannot be loaded ({first_line(error)}); check the folder's files.") from error
    if missing := sorted(notes["missing_keys"]):
        raise ModelError(
            f"tower: {name}: {len(missing)} of its tensors are missing, such as {missing[0]}; "
            "get the model's files again."
        )
    recipe = {
        "kind": kind,
        "layer": -2,
        "activation": config.hidden_act,
        "heads": config.num_attention_heads,
        "epsilon": config.layer_norm_eps,
    }
    features = _clip_features if kind == "clip" else _siglip_features
    return Tower(
        name, _facts(config, kind), network.to(device), features, preprocess, recipe, _unused_modules(network, config)
    )


def count_trainable(name: str, lora: Lora | None) -> int:
    """Weights of an adapter on a tower, or of the tower itself, that training changes; from its settings alone.

    Raises:
        ModelError: as `clip_siglip_facts`.
    """
    config, kind = _vision_config(_config_folder(name))
    with torch.device("meta"):
        network = _network_class(kind)(config)
    idle = _unused_modules(network, config)
    if lora is not None:
        return sum(
            lora.rank * sum(each.weight.shape) for part, each in linear_layers(network) if not part.startswith(idle)
        )
    return sum(weight.numel() for part, weight in network.named_parameters() if not part.startswith(idle))


def _network_class(kind: TowerKind) -> Any:
    from transformers import CLIPVisionModel, SiglipVisionModel

    return CLIPVisionModel if kind == "clip" else SiglipVisionModel


def _unused_modules(network: nn.Module, config: Any) -> tuple[str, ...]:
    """The names of what features of layer -2 never pass."""
    unseen = (f"encoder.layers.{config.num_hidden_layers - 1}", "post_layernorm", "head")
    return tuple(part for part, _ in network.named_modules() if part.startswith(unseen))


def _clip_features(network: Any, pixels: Tensor) -> Tensor:
    hidden = network.pre_layrnorm(network.embeddings(pixels))
    return _through_layers(network, hidden)[:, 1:]


def _siglip_features(network: Any, pixels: Tensor) -> Tensor:
    return _through_layers(network, network.embeddings(pixels))


def _through_layers(network: Any, hidden: Tensor) -> Tensor:
    """All layers but the last, whose output layer -2 does not see."""
    for layer in list[nn.Module](network.encoder.layers)[:-1]:
        hidden = layer(hidden, attention_mask=None)
    return hidden


def _facts(config: Any, kind: TowerKind) -> TowerFacts:
    patches = (config.image_size // config.patch_size) ** 2
    return TowerFacts(patches, config.hidden_size, config.image_size, kind)


def _config_folder(name: str) -> Path:
    """The folder with the tower's config.json: itself, or the hub's, without weights."""
    if (remote := parse_remote(name, "tower")) is not None:
        return fetch(remote, weights=False)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / "open_clip_config.json").exists() and not (folder / "config.json").exists():
            raise ModelError(f"tower: {name}: this folder holds an open_clip model; write open_clip:{name}.")
        if not (folder / "config.json").exists():
            raise ModelError(f"tower: {name}: config.json is missing in this folder; {SUPPORTED}.")
        if not any([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
            raise ModelError(f"tower: {name}: no weights (*.safetensors) in this folder; finish the download.")
        for index in folder.glob("*.index.json"):
            named = set(read_json_object(index).get("weight_map", {}).values())
            if missing := sorted(file for file in named if not (folder / file).exists()):
                raise ModelError(f"{index}: {missing[0]} is missing ({len(missing)} in all); finish the download.")
        return folder
    if folder.exists():
        raise ModelError(
            f"tower: {name}: this is a file; give the folder that holds config.json, or open_clip:NAME/FILE."
        )
    raise ModelError(f"tower: {name}: no such folder{_open_clip_hint(name)}; {SUPPORTED}.")


def _open_clip_hint(name: str) -> str:
    """For a name such as ViT-L-14-336, which people know from open_clip."""
    from open_clip import list_models

    return f", but open_clip has that model: write open_clip:{name}/WEIGHTS" if name in list_models() else ""


def _vision_config(folder: Path) -> tuple[Any, TowerKind]:
    """The vision part's config, and whose it is."""
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    path = folder / "config.json"
    named = model_type(folder)
    if named == "siglip2":
        raise ModelError(
            f"{path}: this SigLIP 2 cuts every picture into another number of patches (NaFlex); "
            "take a fixed-resolution one, such as siglip2-so400m-patch14-384."
        )
    if named not in KINDS:
        raise ModelError(f"{path}: model_type {named!r} is no vision tower that is supported: {SUPPORTED}.")
    kind = KINDS[named]
    try:
        config: Any = (CLIPVisionConfig if kind == "clip" else SiglipVisionConfig).from_pretrained(folder)
    except Exception as error:  # transformers raises whatever its checks raise
        raise ModelError(f"{path}: cannot be used ({first_line(error)}); get the model's files again.") from error
    if not 0 < config.patch_size <= config.image_size:
        raise ModelError(
            f"{path}: no patches of {config.patch_size} pixels in {config.image_size}; get its files again."
        )
    if config.num_hidden_layers < 2:
        raise ModelError(f"{path}: one layer only; features are those of the last but one, so take a deeper tower.")
    return config, kind


def _read_preprocess(folder: Path, size: int) -> Preprocess:
    """The folder's own image processor settings, as far as they mean anything for a square."""
    path = folder / "preprocessor_config.json"
    if path.exists():
        settings = read_json_object(path)
    else:
        path = folder / "processor_config.json"
        settings = read_json_object(path).get("image_processor") if path.exists() else None
    if not isinstance(settings, dict):
        raise ModelError(
            f"tower: {folder}: preprocessor_config.json is missing; copy it from where the model came from."
        )
    crops = settings.get("do_center_crop") and settings.get("crop_size") is not None
    resize = _edge(settings.get("size"), path, "size")
    edge = _edge(settings["crop_size"], path, "crop_size") if crops else resize
    if edge != size:
        raise ModelError(
            f"{path}: gives pictures of {edge} pixels, and the tower takes {size}; mend size or crop_size."
        )
    if resize < edge:
        raise ModelError(f"{path}: crop_size {edge} is larger than size {resize}; mend one of them.")
    if settings.get("do_resize") is False or settings.get("do_rescale") is False:
        raise ModelError(f"{path}: do_resize and do_rescale must be true for this tower; mend them.")
    if abs(settings.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-4:
        raise ModelError(f"{path}: rescale_factor must be 1/255 (0.00392156862745098); mend it.")
    normalizes = settings.get("do_normalize", True)
    return Preprocess(
        size=edge,
        resize=resize,
        mean=_channels(settings.get("image_mean"), path, "image_mean") if normalizes else (0.0, 0.0, 0.0),
        std=_channels(settings.get("image_std"), path, "image_std") if normalizes else (1.0, 1.0, 1.0),
        resample=settings.get("resample", Image.Resampling.BICUBIC),
    )


def _edge(size: Any, path: Path, key: str) -> int:
    """One edge out of 336, {"shortest_edge": 336} or {"height": 336, "width": 336}."""
    edges = set(size.values()) if isinstance(size, dict) else {size}
    edge = edges.pop() if len(edges) == 1 else None
    if not isinstance(edge, int) or edge < 1:
        raise ModelError(f"{path}: {key} must name one edge in pixels, of a square (got {size!r}); mend it.")
    return edge


def _channels(values: Any, path: Path, key: str) -> tuple[float, float, float]:
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise ModelError(f"{path}: {key} must be three numbers (got {values!r}); mend it.") from error
    return red, green, blue
