"""open_clip vision towers: pretrained tag, local weights file or local folder.

A network whose layers all keep one grid gives layer -2, as CLIP in LLaVA does; one that shrinks its maps from stage to
stage (ResNet, ConvNeXt) gives the last map, for there the layer before is another resolution. Only the visual part is
ever built or read.
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
    """What a name stands for.

    Args:
        model: open_clip's configuration of the network.
        images: its mean, std and interpolation.
        file: local weights, or
        tag: open_clip's entry of weights to fetch.
    """

    model: Mapping[str, Any]
    images: Mapping[str, Any]
    file: Path | None = None
    tag: Mapping[str, Any] | None = None

    @property
    def uses_configured_activation(self) -> bool:
        """Whether the configuration's activation is used: timm's networks and ResNets have their own."""
        vision = self.model["vision_cfg"]
        return not vision.get("timm_model_name") and not isinstance(vision.get("layers"), (list, tuple))

    @property
    def quick_gelu(self) -> bool:
        """Whether the activation is OpenAI's fast GELU."""
        return bool(self.model.get("quick_gelu"))


def open_clip_facts(name: str) -> TowerFacts:
    """As `tower_facts`; the network is laid out without memory for it."""
    facts, _ = _feature_layer(name, _read_name(name))
    return facts


def load_open_clip(name: str, device: torch.device, dtype: torch.dtype) -> Tower:
    """As `load_tower`."""
    source = _read_name(name)
    facts, layer = _feature_layer(name, source)
    path = source.file or _fetch(name, source)
    weights = _visual_weights(path)
    if not weights:
        raise ModelError(
            f"tower: {path}: holds no tensors named visual.*, as open_clip's weights do; take such a file."
        )
    network = _build(name, source)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1:2]).strip().rstrip(".")  # line 0 names the class alone
        raise ModelError(
            f"tower: {path}: not the weights of this model ({reason}); name the model they are of."
        ) from error
    recipe = {
        "vision": source.model["vision_cfg"],
        "quick": source.uses_configured_activation and source.quick_gelu,
        "layer": layer,
    }
    features = partial(_features, layer=layer)
    return Tower(name, facts, network.to(device, dtype), features, _preprocess(name, source, facts.size), recipe)


def _features(network: Any, pixels: Tensor, layer: int) -> Tensor:
    maps = network.forward_intermediates(pixels, indices=[layer], stop_early=True, intermediates_only=True)
    return maps["image_intermediates"][0].flatten(2).transpose(1, 2)


def _feature_layer(name: str, source: OpenClipSource) -> tuple[TowerFacts, int]:
    """The facts, and which layer's features are taken."""
    with torch.device("meta"):
        network: Any = _build(name, source).eval()
        side = network.image_size if isinstance(network.image_size, int) else network.image_size[0]
        maps = network.forward_intermediates(torch.empty(1, 3, side, side), intermediates_only=True)
    last_but_one, last = (tuple(features.shape[1:]) for features in maps["image_intermediates"][-2:])
    layer, shape = (-2, last_but_one) if last_but_one == last else (-1, last)
    width, high, wide = shape
    return TowerFacts(high * wide, width, side, "open_clip"), layer


def _build(name: str, source: OpenClipSource) -> nn.Module:
    from open_clip.model import _build_vision_tower  # the only way to it without the text part

    try:
        vision = {**source.model["vision_cfg"], "timm_model_pretrained": False}
        return _build_vision_tower(source.model["embed_dim"], vision, source.quick_gelu)  # pyright: ignore[reportArgumentType]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ModelError(f"tower: {name}: its configuration cannot be used ({error}); get its files again.") from error


def _preprocess(name: str, source: OpenClipSource, size: int) -> Preprocess:
    resample = RESAMPLE.get(source.images.get("interpolation", "bicubic"))
    if resample is None:
        raise ModelError(f"tower: {name}: interpolation must be bicubic or bilinear; mend its preprocess_cfg.")
    red, green, blue = source.images["mean"]
    std = source.images["std"]
    return Preprocess(size, size, (red, green, blue), (std[0], std[1], std[2]), resample)


def _read_name(name: str) -> OpenClipSource:
    """What stands behind the prefix: a folder, a model and a file, or a model and a tag."""
    import open_clip

    rest = name.removeprefix(OPEN_CLIP_PREFIX)
    if rest.startswith(("/", "~", ".")) or Path(rest).is_dir():
        return _read_folder(Path(rest).expanduser())
    model_name, _, weights = rest.partition("/")
    model = open_clip.get_model_config(model_name) if model_name in open_clip.list_models() else None
    if model is None:
        raise ModelError(
            f"tower: {name}: open_clip knows no model {model_name}; {_closest(model_name, open_clip.list_models())}."
        )
    if not weights:
        tags = _first_few(open_clip.list_pretrained_tags_by_model(model_name)) or "none of its own"
        raise ModelError(f"tower: {name}: names no weights; write {SYNTAX} (tags of {model_name}: {tags}).")
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
        raise ModelError(f"tower: {name}: {model_name} has no weights {tag}; {_closest(tag, tags)}.")
    source = OpenClipSource(model, entry, tag=entry)
    if source.uses_configured_activation and entry.get("quick_gelu") and not source.quick_gelu:
        raise _wrong_activation(name, f"{plain}-quickgelu/{tag}")
    return source


def _read_file(name: str, model_name: str, model: Mapping[str, Any], path: Path) -> OpenClipSource:
    """A model of open_clip's with local weights, whose normalization must be known from the model's other weights."""
    import open_clip

    if not path.is_file():
        raise ModelError(f"tower: {name}: no such file {path}; {SYNTAX}.")
    openai = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD, "interpolation": "bicubic"}
    if _is_openai_archive(path):
        source = OpenClipSource(model, openai, file=path)
        if source.uses_configured_activation and not source.quick_gelu:
            raise _wrong_activation(name, f"{model_name}-quickgelu/{path}")
        return source
    entries = [
        open_clip.get_pretrained_cfg(model_name, tag) for tag in open_clip.list_pretrained_tags_by_model(model_name)
    ]
    used = [{key: entry[key] for key in openai} for entry in entries] or [openai]
    if any(entry != used[0] for entry in used):
        raise ModelError(
            f"tower: {name}: {model_name} was published with several normalizations of pictures, so say which one goes "
            f"with this file: put it in a folder with open_clip_config.json and write "
            f"{OPEN_CLIP_PREFIX}/path/to/folder."
        )
    return OpenClipSource(model, used[0], file=path)


def _read_folder(folder: Path) -> OpenClipSource:
    """open_clip's local folder: open_clip_config.json beside the weights."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise ModelError(f"tower: {OPEN_CLIP_PREFIX}{folder}: open_clip_config.json is missing there; {SYNTAX}.")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        model, images = document["model_cfg"], document["preprocess_cfg"]
        _ = model["vision_cfg"], model["embed_dim"], images["mean"], images["std"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path}: cannot be used ({error}); "
            "it holds model_cfg (embed_dim, vision_cfg) and preprocess_cfg (mean, std)."
        ) from error
    files = [file for suffix in FILES for file in sorted(folder.glob(f"*{suffix}"))]
    if not files:
        raise ModelError(
            f"tower: {OPEN_CLIP_PREFIX}{folder}: no weights (*.safetensors, *.bin) in this folder; finish the download."
        )
    file = next((file for file in files if file.name.startswith("open_clip")), files[0])
    source = OpenClipSource(model, images, file=file)
    claimed = _claimed_activation(folder, file)
    if source.uses_configured_activation and claimed not in (None, source.quick_gelu):
        raise ModelError(
            f"{path}: quick_gelu does not belong to these weights; set model_cfg.quick_gelu to {str(claimed).lower()}."
        )
    return source


def _claimed_activation(folder: Path, file: Path) -> bool | None:
    """Whether a folder's other files say that its weights are for the fast GELU; None when they say nothing."""
    if _is_openai_archive(file):
        return True
    try:
        config = json.loads(
            (folder / "config.json").read_text(encoding="utf-8")
        )  # transformers' copy of the same weights
        return config["vision_config"]["hidden_act"] == "quick_gelu"
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_openai_archive(path: Path) -> bool:
    """OpenAI published its weights as TorchScript archives, which carry code; plain weights do not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in member for member in archive.namelist())


def _visual_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of the visual part, by their names in it.

    Raises:
        ModelError: the file cannot be read as weights.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as stored:
                return {key[7:]: stored.get_tensor(key) for key in stored.keys() if key.startswith("visual.")}  # noqa: SIM118
        if _is_openai_archive(path):
            weights = torch.jit.load(path, map_location="cpu").state_dict()
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
            weights = weights.get("state_dict", weights)
    except Exception as error:  # readers raise whatever they trip over
        raise ModelError(
            f"tower: {path}: cannot be read as weights ({first_line(error)}); get the file again."
        ) from error
    named = ((key.removeprefix("module."), tensor) for key, tensor in weights.items())  # module. of parallel training
    return {key[7:]: tensor for key, tensor in named if key.startswith("visual.")}


def _fetch(name: str, source: OpenClipSource) -> Path:
    import open_clip

    try:
        return Path(open_clip.download_pretrained(dict(source.tag or {})))
    except Exception as error:  # of the hub's client or of urllib
        raise ModelError(
            f"tower: {name}: cannot be fetched ({first_line(error)}); mend the connection, or give a file: "
            f"{name.rpartition('/')[0]}//path/to/weights.pt."
        ) from error


def _wrong_activation(name: str, right: str) -> ModelError:
    return ModelError(f"tower: {name}: these weights were trained with the fast GELU; write {OPEN_CLIP_PREFIX}{right}.")


def _closest(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, n=3, cutoff=0.5)
    return f"nearest are {', '.join(near)}" if near else f"it has {_first_few(words)}"


def _first_few(words: list[str]) -> str:
    return ", ".join(words[:6]) + (" ..." if len(words) > 6 else "")
