"""Readers of LLaVA parts: projector, adapters and full weights from runs, XTuner and LLaVA checkpoints.

Files of twinlens, XTuner and LLaVA differ only in weight names; shapes and values are the same.

Shapes: V width of the tower, D width of the language model.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from llm.checkpoints.embedded import EMBEDDED
from llm.checkpoints.shards import LazyTensor, lazy_from_tensor, lazy_weights, read_weight_index
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
_PROJECTOR = re.compile(
    r"^(?:.*\b(?:projector\.model|mm_projector|multi_modal_projector)\.|model\.)?(.+)\.(weight|bias)$"
)
_IN_PROJECTOR = re.compile(r"\b(?:projector\.model|mm_projector|multi_modal_projector)\.")


@dataclass(frozen=True, slots=True)
class LlavaParts:
    """Weights of a LLaVA model, by part.

    Args:
        source: their name, for errors.
        projector: linear_1 [D, V] and linear_2 [D, D] with biases; empty if the source has none.
        language: adapter of the language model, under PEFT's names.
        tower: adapter of the tower.
        language_alpha: lora_alpha of `language`; None if the source does not tell.
        tower_alpha: lora_alpha of `tower`.
        full_language: every weight of the language model, under its training names.
        full_tower: every weight of the tower, under transformers' names.
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
    """Read the parts that a task names as its start.

    Raises:
        ModelError: as `read_parts`, or the source holds a full model, which belongs under `model` or `tower`.
    """
    try:
        start = read_parts(name)
    except ModelError as error:
        raise ModelError(f"start: {error}") from error
    parts = (("model", "language model", start.full_language), ("tower", "tower", start.full_tower))
    if held := {key: what for key, what, whole in parts if whole is not None}:
        path = Path(name).expanduser()
        run = next((RunDir(each) for each in (path, path.parent) if RunDir(each).task.exists()), None)
        fix = "make a run of it with `twinlens convert pth_to_hf`, and give that one's parts"
        if run is not None:
            places = {"model": run.model, "tower": run.adapter / TOWER_FOLDER}
            fix = f"set {' '.join(f'{key}={places[key]}' for key in held)} start={run.adapter / PROJECTOR_FILE}"
        raise ModelError(f"start: {name}: holds {' and '.join(f'a whole {what}' for what in held.values())}; {fix}.")
    return start


def read_parts(name: str) -> LlavaParts:
    """The weights of a source: `embedded`; a run or its adapter folder; a projector as .safetensors; XTuner's .pth or
    folder; LLaVA's mm_projector.bin; a LLaVA checkpoint, from which only the projector is read.

    Raises:
        ModelError: no such source, it is broken, or its weights do not belong to a LLaVA.
    """
    if name == EMBEDDED:
        return LlavaParts(name, _projector(_safetensors(shipped_file(EMBEDDED_PROJECTOR)), name))
    path = Path(name).expanduser()
    if not path.exists():
        raise ModelError(f"{name}: no such file or folder; give embedded, a run, a projector file or a checkpoint.")
    if path.is_file():
        return _from_file(path, name)
    if (path / "task.yaml").exists():
        path = RunDir(path).adapter
    if (path / DEEPSPEED_FILE).exists():
        return _from_pth(path, name)
    if (path / "projector").is_dir():
        return _from_xtuner_folder(path, name)
    if (path / PROJECTOR_FILE).exists() or (path / ADAPTER_CONFIG).exists():
        return _from_adapter(path, name)
    if (path / "config.json").exists():
        return LlavaParts(name, _projector(_projector_in_shards(path), name))
    raise ModelError(
        f"{name}: neither a run nor a LLaVA checkpoint (no {PROJECTOR_FILE}, projector/ or config.json in it); "
        "give the folder that holds one."
    )


def _from_file(path: Path, name: str) -> LlavaParts:
    if path.suffix == ".safetensors":
        return _split_by_prefix(_safetensors(path), name)
    if path.suffix in PICKLED:
        return _from_pth(path, name)
    raise ModelError(
        f"{name}: files to start from end in .safetensors, .pth, .pt or .bin; give one of them or a folder."
    )


def _from_pth(path: Path, name: str) -> LlavaParts:
    held = read_pth(path)
    meta = held.get("meta")
    config = str(meta.get("cfg", "")) if isinstance(meta, Mapping) else ""
    return _split_by_prefix(
        state_dict_in(held, path), name, _alpha(config, r"(?:llm_)?lora"), _alpha(config, r"visual_encoder_lora")
    )


def _alpha(config: str, block: str) -> int | None:
    """`lora_alpha` in the text of an XTuner config, which mmengine writes with sorted plain keywords."""
    found = re.search(rf"\b{block}=dict\([^()]*?\blora_alpha=(\d+)", config)
    return int(found.group(1)) if found else None


def _split_by_prefix(
    weights: Mapping[str, Tensor], name: str, language_alpha: int | None = None, tower_alpha: int | None = None
) -> LlavaParts:
    """XTuner's parts by their prefixes; weights without a prefix belong to a projector."""
    rest = dict(weights)
    language, whole_language = _part(rest, "llm.", name)
    tower, whole_tower = _part(rest, "visual_encoder.", name)
    projector = _projector(rest, name) if rest else {}
    return LlavaParts(name, projector, language, tower, language_alpha, tower_alpha, whole_language, whole_tower)


def _part(
    weights: dict[str, Tensor], prefix: str, name: str
) -> tuple[dict[str, Tensor] | None, dict[str, LazyTensor] | None]:
    """Remove the weights with `prefix` from `weights`: an adapter under PEFT's names, or a full model."""
    taken = {key.removeprefix(prefix): weights.pop(key) for key in list(weights) if key.startswith(prefix)}
    whole = [key for key in taken if ".lora_" not in key]
    if len(whole) == len(taken):
        return None, {key: lazy_from_tensor(value) for key, value in taken.items()} or None
    if whole:
        raise ModelError(
            f"{name}: holds {prefix}{whole[0]} beside an adapter; an adapter or a whole model can be read, not both."
        )
    return {key.replace(".default.", "."): value for key, value in taken.items()}, None


def _from_adapter(folder: Path, name: str) -> LlavaParts:
    projector = _projector(_safetensors(folder / PROJECTOR_FILE), name) if (folder / PROJECTOR_FILE).exists() else {}
    language, language_alpha = _from_peft(folder)
    tower, tower_alpha = _from_peft(folder / TOWER_FOLDER)
    run = RunDir(folder.parent)
    whole = lazy_weights(run.model) if run.task.exists() and run.model.exists() else None
    whole_tower = lazy_weights(folder / TOWER_FOLDER) if (folder / TOWER_FOLDER / "config.json").exists() else None
    return LlavaParts(name, projector, language, tower, language_alpha, tower_alpha, whole, whole_tower)


def _from_xtuner_folder(folder: Path, name: str) -> LlavaParts:
    language, language_alpha = _from_peft(folder / "llm_adapter")
    tower, tower_alpha = _from_peft(folder / "visual_encoder_adapter")
    projector = {key: weight.read() for key, weight in lazy_weights(folder / "projector").items()}
    return LlavaParts(name, _projector(projector, name), language, tower, language_alpha, tower_alpha)


def _from_peft(folder: Path) -> tuple[dict[str, Tensor] | None, int | None]:
    """An adapter that PEFT saved and its alpha, if there is one."""
    if not (folder / ADAPTER_CONFIG).exists():
        return None, None
    alpha = read_adapter_config(folder).get("lora_alpha")
    return read_adapter_weights(folder), alpha if isinstance(alpha, int) else None


def _projector_in_shards(folder: Path) -> dict[str, Tensor]:
    """The projector of a full checkpoint; its other weights are not read."""
    indices = [file for file in sorted(folder.glob("*.index.json")) if "adapter" not in file.name]
    if indices:
        shards = sorted(
            {shard for weight, shard in read_weight_index(indices[0]).items() if _IN_PROJECTOR.search(weight)}
        )
        files = [folder / shard for shard in shards]
    else:
        files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    found: dict[str, Tensor] = {}
    for file in files:
        if not file.exists():
            raise ModelError(f"{file}: is missing; finish the download.")
        if file.suffix == ".safetensors":
            found |= _safetensors(file, _IN_PROJECTOR)
        else:
            weights = state_dict_in(read_pth(file), file)
            found |= {key: value for key, value in weights.items() if _IN_PROJECTOR.search(key)}
    return found


def _projector(weights: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The four tensors of a projector under our names.

    Raises:
        ModelError: no projector, or another kind.
    """
    ours: dict[str, Tensor] = {}
    for key, value in weights.items():
        named = _PROJECTOR.match(key)
        if named is None or named.group(1) not in _LAYERS:
            raise ModelError(
                f"{name}: {key} belongs to no projector of two layers (mlp2x_gelu); give a LLaVA-1.5 projector."
            )
        ours[f"{_LAYERS[named.group(1)]}.{named.group(2)}"] = value
    wanted = {f"linear_{layer}.{part}" for layer in (1, 2) for part in ("weight", "bias")}
    if missing := sorted(wanted - ours.keys()):
        raise ModelError(
            f"{name}: no projector of two layers in it ({missing[0]} is missing); give a LLaVA-1.5 projector."
        )
    first, second = ours["linear_1.weight"], ours["linear_2.weight"]
    hidden = first.shape[0]
    if (
        first.dim() != 2
        or second.shape != (hidden, hidden)
        or any(ours[f"linear_{layer}.bias"].shape != (hidden,) for layer in (1, 2))
    ):
        raise ModelError(f"{name}: the layers of this projector do not fit each other; get the file again.")
    return ours


def _safetensors(file: Path, wanted: re.Pattern[str] | None = None) -> dict[str, Tensor]:
    try:
        with safe_open(file, "pt") as held:
            return {key: held.get_tensor(key) for key in held.keys() if not wanted or wanted.search(key)}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as safetensors ({error}); get the file again.") from error
