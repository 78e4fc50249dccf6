"""Readers of LLaVA weights: projector, adapters, full models; from runs, XTuner and LLaVA checkpoints.

Files of twinlens, XTuner and LLaVA differ only in weight names; shapes and values are the same.

Shapes: V width of the tower, D width of the language model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from llm.checkpoints.embedded import EMBEDDED
from llm.checkpoints.shards import (
    LazyTensor,
    find_weight_index,
    lazy_file_weights,
    lazy_from_tensor,
    lazy_weights,
    read_weight_index,
)
from tuning.errors import ModelError
from tuning.modules.lora import ADAPTER_CONFIG, read_adapter_config, read_adapter_weights
from tuning.modules.pth import DEEPSPEED_FILE, read_pth, state_dict_in
from tuning.paths import shipped_file
from tuning.run_dir import RunDir
from vlm.projector import PROJECTOR_FILE
from vlm.towers.tower import TOWER_FOLDER

EMBEDDED_PROJECTOR = "projectors/smollm2-135m-efficientnet-lite.safetensors"
PICKLED = (".pth", ".pt", ".bin")
_LAYERS = {"0": "linear_1", "2": "linear_2", "linear_1": "linear_1", "linear_2": "linear_2"}
_WEIGHTS = ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")
_IN_PROJECTOR = re.compile(r"\b(?:projector\.model|mm_projector|multi_modal_projector)\.")
_PROJECTOR = re.compile(rf"^(?:.*{_IN_PROJECTOR.pattern}|model\.)?(.+)\.(weight|bias)$")


@dataclass(frozen=True, slots=True)
class LlavaParts:
    """Weights of a LLaVA model, by part.

    Args:
        source: name of the source, for errors.
        projector: linear_1 [D, V] and linear_2 [D, D] with biases; empty if the source has none.
        language: adapter of the language model, with PEFT's names.
        tower: adapter of the tower.
        language_alpha: lora_alpha of `language`; None if the source does not contain it.
        tower_alpha: lora_alpha of `tower`.
        full_language: every weight of the language model, with the names of training.
        full_tower: every weight of the tower, with transformers' names.
    """

    source: str
    projector: dict[str, Tensor]
    language: dict[str, Tensor] | None = None
    tower: dict[str, Tensor] | None = None
    language_alpha: int | None = None
    tower_alpha: int | None = None
    full_language: Mapping[str, LazyTensor] | None = None
    full_tower: Mapping[str, LazyTensor] | None = None


def read_initial_parts(name: str) -> LlavaParts:
    """Read the parts that a task's `start` names.

    Raises:
        ModelError: as `read_parts`; or the source contains a full model, which belongs to `model` or `tower`.
    """
    try:
        start = read_parts(name)
    except ModelError as error:
        raise ModelError(f"start: {error}") from error
    parts = (("model", "language model", start.full_language), ("tower", "tower", start.full_tower))
    if full := {key: what for key, what, weights in parts if weights is not None}:
        path = Path(name).expanduser()
        run = next((RunDir(each) for each in (path, path.parent) if RunDir(each).task.exists()), None)
        fix = "convert it to a run with `twinlens convert pth_to_hf`, and give the parts of that run"
        if run is not None:
            places = {"model": run.model, "tower": run.adapter / TOWER_FOLDER}
            fix = f"set {' '.join(f'{key}={places[key]}' for key in full)} start={run.adapter / PROJECTOR_FILE}"
        raise ModelError(f"start: {name}: contains {' and '.join(f'a full {what}' for what in full.values())}; {fix}.")
    return start


def read_parts(name: str) -> LlavaParts:
    """Read the weights of a source.

    Args:
        name: `embedded`; a run or its adapter folder; a projector as .safetensors; XTuner's .pth or folder; LLaVA's
            mm_projector.bin; or a LLaVA checkpoint, of which only the projector is read.

    Raises:
        ModelError: the source does not exist, is broken, or its weights do not belong to a LLaVA model.
    """
    if name == EMBEDDED:
        return _split_by_prefix(lazy_file_weights(shipped_file(EMBEDDED_PROJECTOR)), name)
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelError(f"{name}: no such file or folder; give embedded, a run, a projector file or a checkpoint.")
    if path.suffix == ".safetensors" and path.is_file():
        return _split_by_prefix(lazy_file_weights(path), name)
    if path.suffix in PICKLED and path.is_file():
        return _from_pth(path, name)
    if path.is_file():
        raise ModelError(f"{name}: not a file of weights; give a .safetensors, .pth, .pt or .bin file, or a folder.")
    if (path / "task.yaml").exists():
        path = RunDir(path).adapter
    if (path / DEEPSPEED_FILE).exists():
        return _from_pth(path, name)
    if (path / "projector").is_dir():
        projector = lazy_weights(path / "projector")
        return _with_adapters(name, projector, path / "llm_adapter", path / "visual_encoder_adapter")
    if (path / PROJECTOR_FILE).exists() or (path / ADAPTER_CONFIG).exists():
        return _from_adapter_folder(path, name)
    if (path / "config.json").exists():
        return LlavaParts(name, _projector(_checkpoint_projector(path), name))
    raise ModelError(
        f"{name}: neither a run nor a LLaVA checkpoint ({PROJECTOR_FILE}, projector/ and config.json are missing); "
        "give another folder."
    )


def _from_pth(path: Path, name: str) -> LlavaParts:
    checkpoint = read_pth(path)
    weights = {key: lazy_from_tensor(value) for key, value in state_dict_in(checkpoint, path).items()}
    meta = checkpoint.get("meta")
    config = str(meta.get("cfg", "")) if isinstance(meta, Mapping) else ""
    alpha, tower_alpha = _read_alpha(config, "(?:llm_)?lora"), _read_alpha(config, "visual_encoder_lora")
    return _split_by_prefix(weights, name, alpha, tower_alpha)


def _read_alpha(config: str, block: str) -> int | None:
    """`lora_alpha` in the text of an XTuner config; mmengine writes its keywords sorted and on separate lines."""
    found = re.search(rf"\b{block}=dict\([^()]*?\blora_alpha=(\d+)", config)
    return int(found.group(1)) if found else None


def _split_by_prefix(
    weights: Mapping[str, LazyTensor], name: str, language_alpha: int | None = None, tower_alpha: int | None = None
) -> LlavaParts:
    """Split weights by XTuner's prefixes; weights without a prefix belong to a projector."""
    rest = dict(weights)
    language, full_language = _take_part(rest, "llm.", name)
    tower, full_tower = _take_part(rest, "visual_encoder.", name)
    projector = _projector(rest, name) if rest else {}
    return LlavaParts(name, projector, language, tower, language_alpha, tower_alpha, full_language, full_tower)


def _take_part(
    weights: dict[str, LazyTensor], prefix: str, name: str
) -> tuple[dict[str, Tensor] | None, dict[str, LazyTensor] | None]:
    """Remove the weights with `prefix` from `weights`: an adapter with PEFT's names, or a full model."""
    part = {key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}
    full = [key for key in part if ".lora_" not in key]
    if len(full) == len(part):
        return None, part or None
    if full:
        raise ModelError(
            f"{name}: contains an adapter and {prefix}{full[0]}; give a file with an adapter or a full model, not both."
        )
    return {key.replace(".default.", "."): weight.read() for key, weight in part.items()}, None


def _from_adapter_folder(folder: Path, name: str) -> LlavaParts:
    """The adapter folder of a run, with the run's fully fine-tuned models."""
    file, tower, run = folder / PROJECTOR_FILE, folder / TOWER_FOLDER, RunDir(folder.parent)
    return replace(
        _with_adapters(name, lazy_file_weights(file) if file.exists() else {}, folder, tower),
        full_language=lazy_weights(run.model) if run.task.exists() and run.model.exists() else None,
        full_tower=lazy_weights(tower) if (tower / "config.json").exists() else None,
    )


def _with_adapters(name: str, projector: Mapping[str, LazyTensor], language: Path, tower: Path) -> LlavaParts:
    """A projector, with the PEFT adapters of two folders where they exist."""
    language_adapter, language_alpha = _read_adapter(language)
    tower_adapter, tower_alpha = _read_adapter(tower)
    ours = _projector(projector, name) if projector else {}
    return LlavaParts(name, ours, language_adapter, tower_adapter, language_alpha, tower_alpha)


def _read_adapter(folder: Path) -> tuple[dict[str, Tensor] | None, int | None]:
    """The weights of a PEFT adapter and its alpha, if the folder contains one."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None, None
    alpha = read_adapter_config(folder)["lora_alpha"]
    return read_adapter_weights(folder), alpha if isinstance(alpha, int) else None


def _checkpoint_projector(folder: Path) -> dict[str, LazyTensor]:
    """The projector of a full checkpoint; files without projector weights are not read."""
    if (index := find_weight_index(folder)) is not None:
        places = read_weight_index(index)
        files = sorted({folder / file for weight, file in places.items() if _IN_PROJECTOR.search(weight)})
    else:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if missing := [file for file in files if not file.exists()]:
        raise ModelError(f"{missing[0]}: is missing; finish the download.")
    weights = {name: weight for file in files for name, weight in lazy_file_weights(file).items()}
    return {name: weight for name, weight in weights.items() if _IN_PROJECTOR.search(name)}


def _projector(weights: Mapping[str, LazyTensor], name: str) -> dict[str, Tensor]:
    """The four tensors of a projector, with our names.

    Raises:
        ModelError: they are not the weights of a projector with two layers.
    """
    ours: dict[str, LazyTensor] = {}
    for key, weight in weights.items():
        found = _PROJECTOR.match(key)
        if found is None or found.group(1) not in _LAYERS:
            raise ModelError(
                f"{name}: {key} does not belong to a projector of two layers (mlp2x_gelu); give a LLaVA-1.5 projector."
            )
        ours[f"{_LAYERS[found.group(1)]}.{found.group(2)}"] = weight
    if missing := [key for key in _WEIGHTS if key not in ours]:
        raise ModelError(
            f"{name}: has no projector of two layers ({missing[0]} is missing); give a LLaVA-1.5 projector."
        )
    first, *others = (ours[key].shape for key in _WEIGHTS)
    hidden = first[0]
    if len(first) != 2 or others != [(hidden,), (hidden, hidden), (hidden,)]:
        raise ModelError(f"{name}: the shapes of the projector's layers do not match; get the file again.")
    return {key: weight.read() for key, weight in ours.items()}
