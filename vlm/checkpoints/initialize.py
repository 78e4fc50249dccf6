"""Initial weights of an image run: checked before any model loads, then copied into projector and adapters."""

import logging
import re
from collections.abc import Callable, Mapping

import torch
from peft import PeftModel
from torch import Tensor

from llm.internlm.adapter import split_adapter
from tuning.errors import ModelError
from tuning.modules.lora import target_names
from tuning.settings import Lora
from vlm.checkpoints.reading import LlavaParts, read_initial_parts
from vlm.projector import Projector

log = logging.getLogger("twinlens")
_LAYER = re.compile(r"encoder\.layers\.(\d+)\..*\.lora_")


def check_initial_parts(
    name: str, width: int, hidden: int, lora: Lora | None = None, tower_lora: Lora | None = None
) -> LlavaParts:
    """Check, before any model loads, that a run can start from these weights.

    Args:
        width: V of the tower.
        hidden: D of the language model.
        lora: LoRA settings of the run, if any; `tower_lora` likewise.

    Raises:
        ModelError: as `read_initial_parts`; no projector; or widths, ranks or alphas differ.
    """
    start = read_initial_parts(name)
    if not start.projector:
        raise ModelError(f"start: {name}: no projector in it; give a run or a checkpoint of the image path.")
    made, took = start.projector["linear_1.weight"].shape
    if (took, made) != (width, hidden):
        raise ModelError(
            f"start: {name}: this projector takes {took} wide features and gives {made}, and the tower gives {width} "
            f"to a language model of {hidden}; use the tower and model it was trained with."
        )
    check_rank_and_alpha(start, f"start: {name}", lora, tower_lora)
    return start


def check_rank_and_alpha(start: LlavaParts, named: str, lora: Lora | None, tower_lora: Lora | None) -> None:
    """Refuse adapters with another rank or alpha than the run's; `named` names them in errors.

    Raises:
        ModelError: one differs.
    """
    for key, state, alpha, wanted in (
        ("lora", start.language, start.language_alpha, lora),
        ("tower_lora", start.tower, start.tower_alpha, tower_lora),
    ):
        if state is None:
            continue
        if wanted is None:
            log.info("%s has an adapter that this run leaves out, for it has no %s", named, key)
            continue
        rank = _rank(state)
        if rank != wanted.rank or alpha not in (None, wanted.alpha):
            asked = f"rank {wanted.rank}" + (f" and alpha {wanted.alpha}" if alpha else "")
            raise ModelError(
                f"{named}: its adapter has rank {rank}{f' and alpha {alpha}' if alpha else ''}, and this run has "
                f"{asked}; set {key}.rank={rank}{f' {key}.alpha={alpha}' if alpha else ''}."
            )
        if alpha is None:
            log.info("%s does not tell its alpha; %s.alpha=%d must be what it had", named, key, wanted.alpha)


@torch.no_grad()
def load_initial_parts(
    start: LlavaParts, projector: Projector, language: PeftModel | None, tower: PeftModel | None
) -> None:
    """Copy initial weights into a projector and into adapters that are already attached.

    Raises:
        ModelError: an adapter has another rank, other layers or other shapes.
    """
    for name, value in start.projector.items():
        projector.get_parameter(name).copy_(value)
    if language is not None and start.language is not None:
        config = language.get_base_model().config
        state = split_adapter(start.language, config, f"start: {start.source}")
        _copy_adapter(language, state, start.source, "lora", str)
    if tower is not None and start.tower is not None:
        _copy_adapter(tower, _drop_unused_layer(tower, start.tower), start.source, "tower_lora", encoder_name)


def _copy_adapter(
    model: PeftModel, given: Mapping[str, Tensor], source: str, key: str, core: Callable[[str], str]
) -> None:
    places = {
        core(name.replace(".default.", ".")): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    state = {core(name): value for name, value in given.items()}
    if (rank := _rank(state)) != (attached := _rank(places)):
        raise ModelError(
            f"start: {source}: its adapter has rank {rank} and this run's {attached}; set {key}.rank={rank}."
        )
    if (theirs := target_names(state)) != target_names(places):
        raise ModelError(
            f"start: {source}: its adapter is on {', '.join(theirs)} and this run's on "
            f"{', '.join(target_names(places))}; "
            f"set {key}.targets=[{','.join(theirs)}]."
        )
    if odd := sorted(state.keys() ^ places.keys()):
        raise ModelError(
            f"start: {source}: its adapter is for another model ({odd[0]}); use the one it was trained on."
        )
    for name, place in places.items():
        if place.shape != state[name].shape:
            raise ModelError(
                f"start: {source}: its adapter is for another model ({name} is {list(state[name].shape)} and not "
                f"{list(place.shape)}); use the one it was trained on."
            )
    for name, place in places.items():
        place.copy_(state[name])


def _rank(state: Mapping[str, Tensor]) -> int:
    return next(value.shape[0] for name, value in state.items() if ".lora_A." in name)


def _drop_unused_layer(tower: PeftModel, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the adapter of the tower's last layer: XTuner saves it, but features of layer -2 do not pass it, so it is
    untrained."""
    adapted = [int(found.group(1)) for name, _ in tower.named_parameters() if (found := _LAYER.search(name))]
    behind = f"encoder.layers.{max(adapted, default=-1) + 1}."
    return {name: value for name, value in given.items() if behind not in name}


def encoder_name(name: str) -> str:
    """A weight name from `encoder.layers.` on, without the prefixes of different wrappers."""
    return name[max(0, name.find("encoder.layers.")) :]
