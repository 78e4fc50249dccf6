"""open_clip vision towers: pretrained tag, local weights file or local folder.

A network whose layers have the same grid gives features of layer -2, as CLIP in LLaVA does. A network whose maps become
smaller from stage to stage (ResNet, ConvNeXt) gives its last map, because the layer before has another resolution. Only
the visual part is built and read.
"""

import difflib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from tuning.errors import ModelError, first_line
from vlm.towers.preprocess import Preprocess
from vlm.towers.tower import Tower, TowerFacts

OPEN_CLIP_PREFIX = "open_clip:"
SYNTAX = "open_clip:NAME/TAG, open_clip:NAME//path/to/weights.pt or open_clip:/path/to/folder"
FILES = (".safetensors", ".bin", ".pt", ".pth")
RESAMPLE = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class OpenClipSource:
    """The model, preprocessing and weights that a tower's name refers to.

    Args:
        model: open_clip's configuration of the network.
        images: mean, std and interpolation; without `file`, open_clip's entry of the weights to download.
        file: local weights.
    """

    model: Mapping[str, Any]
    images: Mapping[str, Any]
    file: Path | None = None

    @property
    def quick_gelu(self) -> bool | None:
        """Whether the network uses OpenAI's fast GELU; None for timm's networks and ResNets, which do not choose."""
        vision = self.model["vision_cfg"]
        if vision.get("timm_model_name") or isinstance(vision.get("layers"), (list, tuple)):
            return None
        return bool(self.model.get("quick_gelu"))


def open_clip_facts(name: str) -> TowerFacts:
    """As `tower_facts`; the network is built on the meta device, without memory."""
    facts, _ = _feature_layer(name, _read_name(name))
    return facts


def load_open_clip(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """As `load_tower`."""
    source = _read_name(name)
    facts, layer = _feature_layer(name, source)
    path = source.file or _download(name, source)
    weights = _visual_weights(path)
    if not weights:
        raise ModelError(f"tower: {path}: no tensors named visual.*, as in open_clip's weights; use another file.")
    network = _build(name, source)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1:2]).strip().rstrip(".")  # line 0 names only the class
        raise ModelError(
            f"tower: {path}: not the weights of this model ({reason}); give the name of their model."
        ) from error
    recipe = {"vision": source.model["vision_cfg"], "quick": bool(source.quick_gelu), "layer": layer}
    features = partial(_features, layer=layer)
    return Tower(name, facts, network.to(device, dtype), features, _preprocess(name, source, facts.size), recipe)


def _features(network: Any, pixels: Tensor, layer: int) -> Tensor:
    maps = network.forward_intermediates(pixels, indices=[layer], stop_early=True, intermediates_only=True)
    return maps["image_intermediates"][0].flatten(2).transpose(1, 2)


def _feature_layer(name: str, source: OpenClipSource) -> tuple[TowerFacts, int]:
    """The facts, and the layer that gives the features."""
    with torch.device("meta"):
        network: Any = _build(name, source).eval()
        side = network.image_size if isinstance(network.image_size, int) else network.image_size[0]
        maps = network.forward_intermediates(torch.empty(1, 3, side, side), intermediates_only=True)
    second_last, last = (tuple(features.shape[1:]) for features in maps["image_intermediates"][-2:])
    width, rows, columns = last
    return TowerFacts(rows * columns, width, side, "open_clip"), -2 if second_last == last else -1


def _build(name: str, source: OpenClipSource) -> nn.Module:
    from open_clip.model import _build_vision_tower  # open_clip has no public function for the visual part alone

    try:
        vision = {**source.model["vision_cfg"], "timm_model_pretrained": False}
        quick_gelu = bool(source.model.get("quick_gelu"))
        return _build_vision_tower(source.model["embed_dim"], vision, quick_gelu)  # pyright: ignore[reportArgumentType]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"tower: {name}: its configuration cannot be used ({error}); get its files again.") from error


def _preprocess(name: str, source: OpenClipSource, size: int) -> Preprocess:
    resample = RESAMPLE.get(source.images.get("interpolation", "bicubic"))
    if resample is None:
        raise ModelError(f"tower: {name}: interpolation must be bicubic or bilinear; correct its preprocess_cfg.")
    red, green, blue = source.images["mean"]
    std = source.images["std"]
    return Preprocess(size, size, (red, green, blue), (std[0], std[1], std[2]), resample)


def _read_name(name: str) -> OpenClipSource:
    """Read what follows the prefix: a folder, a model and a file, or a model and a tag."""
    import open_clip

    rest = name.removeprefix(OPEN_CLIP_PREFIX)
    if rest.startswith(("/", "~", ".")) or Path(rest).is_dir():
        return _read_folder(Path(rest).expanduser())
    model_name, _, weights = rest.partition("/")
    models = open_clip.list_models()
    if model_name not in models:
        raise ModelError(f"tower: {name}: open_clip has no model {model_name}; {_suggest(model_name, models)}.")
    model: Any = open_clip.get_model_config(model_name)
    if not weights:
        tags = _first_few(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        raise ModelError(f"tower: {name}: the weights are not given; write {SYNTAX} (tags of {model_name}: {tags}).")
    if weights.startswith(("/", "~", ".")) or weights.endswith(FILES):
        return _read_file(name, model_name, model, Path(weights).expanduser())
    return _read_tag(name, model_name, model, weights)


def _read_tag(name: str, model_name: str, model: Mapping[str, Any], tag: str) -> OpenClipSource:
    import open_clip

    plain = model_name.removesuffix("-quickgelu")
    entry = open_clip.get_pretrained_cfg(model_name, tag)
    if not entry:
        if model_name != plain and open_clip.get_pretrained_cfg(plain, tag):
            raise ModelError(
                f"tower: {name}: these weights were trained with plain GELU; write {OPEN_CLIP_PREFIX}{plain}/{tag}."
            )
        tags = open_clip.list_pretrained_tags_by_model(model_name)
        raise ModelError(f"tower: {name}: {model_name} has no weights {tag}; {_suggest(tag, tags)}.")
    source = OpenClipSource(model, entry)
    if entry.get("quick_gelu") and source.quick_gelu is False:
        raise _wrong_activation(name, f"{plain}-quickgelu/{tag}")
    return source


def _read_file(name: str, model_name: str, model: Mapping[str, Any], path: Path) -> OpenClipSource:
    """A model of open_clip with local weights; their normalization must be known from the model's other weights."""
    import open_clip

    if not path.is_file():
        raise ModelError(f"tower: {name}: no such file {path}; {SYNTAX}.")
    openai = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic"}
    if _is_openai_archive(path):
        source = OpenClipSource(model, openai, path)
        if source.quick_gelu is False:
            raise _wrong_activation(name, f"{model_name}-quickgelu/{path}")
        return source
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    entries = [open_clip.get_pretrained_cfg(model_name, tag) for tag in tags]
    used = [{key: entry[key] for key in openai} for entry in entries] or [openai]
    if any(entry != used[0] for entry in used):
        raise ModelError(
            f"tower: {name}: {model_name} was published with several normalizations; to choose one for this file, put "
            f"it in a folder with open_clip_config.json and write {OPEN_CLIP_PREFIX}/path/to/folder."
        )
    return OpenClipSource(model, used[0], path)


def _read_folder(folder: Path) -> OpenClipSource:
    """open_clip's local folder: open_clip_config.json and the weights."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise ModelError(f"tower: {OPEN_CLIP_PREFIX}{folder}: open_clip_config.json is missing; write {SYNTAX}.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model, images = document["model_cfg"], document["preprocess_cfg"]
        _ = model["vision_cfg"], model["embed_dim"], images["mean"], images["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: cannot be used ({error}); "
            "it must contain model_cfg (embed_dim, vision_cfg) and preprocess_cfg (mean, std)."
        ) from error
    files = [file for suffix in FILES for file in sorted(folder.glob(f"*{suffix}"))]
    if not files:
        raise ModelError(
            f"tower: {OPEN_CLIP_PREFIX}{folder}: no weights (*.safetensors, *.bin) in this folder; finish the download."
        )
    file = next((file for file in files if file.name.startswith("open_clip")), files[0])
    source = OpenClipSource(model, images, file)
    trained = _trained_activation(folder, file)
    if None not in (trained, source.quick_gelu) and trained != source.quick_gelu:
        raise ModelError(
            f"{path}: quick_gelu does not match these weights; set model_cfg.quick_gelu to {str(trained).lower()}."
        )
    return source


def _trained_activation(folder: Path, file: Path) -> bool | None:
    """Whether the weights were trained with the fast GELU, from other files of the folder; None if unknown."""
    if _is_openai_archive(file):
        return True
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))  # of the same weights in transformers
        return config["vision_config"]["hidden_act"] == "quick_gelu"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_openai_archive(path: Path) -> bool:
    """Whether a file is a TorchScript archive, as OpenAI published its weights; only such archives contain code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in member for member in archive.namelist())


def _visual_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the visual part, without the prefix `visual.`.

    Raises:
        ModelError: the file cannot be read as weights.
    """
    try:
        if path.suffix == ".safetensors":
            weights = load_file(path)
        elif _is_openai_archive(path):
            weights = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            weights = weights.get("state_dict", weights)
    except Exception as error:  # the readers raise many types
        raise ModelError(
            f"tower: {path}: cannot be read as weights ({first_line(error)}); get the file again."
        ) from error
    named = {name.removeprefix("module."): tensor for name, tensor in weights.items()}  # from parallel training
    return {name.removeprefix("visual."): tensor for name, tensor in named.items() if name.startswith("visual.")}


def _download(name: str, source: OpenClipSource) -> Path:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(dict(source.images)))
    except Exception as error:  # from the hub's client or from urllib
        raise ModelError(
            f"tower: {name}: cannot be downloaded ({first_line(error)}); check the connection, or give a file: "
            f"{name.rpartition('/')[0]}//path/to/weights.pt."
        ) from error


def _wrong_activation(name: str, right: str) -> ModelError:
    return ModelError(f"tower: {name}: these weights were trained with the fast GELU; write {OPEN_CLIP_PREFIX}{right}.")


def _suggest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"the nearest are {', '.join(near)}" if near else f"it has {_first_few(words)}"


def _first_few(words: list[str]) -> str:
    return ", ".join(words[:6]) + (" ..." if len(words) > 6 else "")
