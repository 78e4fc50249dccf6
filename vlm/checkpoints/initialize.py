"""Initial projector and adapters of an image task: check shapes and ranks, then copy them into the model."""

import logging
import re
from collections.abc import Mapping

import torch
from peft import PeftModel
from torch import Tensor, nn

from llm.checkpoints.shards import check_shapes
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
    """Check, before models load, that a run can start from these weights.

    Args:
        width: V of the tower.
        hidden: D of the language model.
        lora: LoRA settings of the run; None if it trains no adapter. `tower_lora` likewise.

    Raises:
        ModelError: as `read_initial_parts`; or there is no projector, or widths, ranks or alphas differ.
    """
    start = read_initial_parts(name)
    if not start.projector:
        raise ModelError(f"start: {name}: contains no projector; give an image run or a LLaVA checkpoint.")
    start_hidden, start_width = start.projector["linear_1.weight"].shape
    if (start_width, start_hidden) != (width, hidden):
        raise ModelError(
            f"start: {name}: this projector is for a tower of width {start_width} and a language model of width "
            f"{start_hidden}, and the task's have {width} and {hidden}; use the tower and model it was trained with."
        )
    check_rank_and_alpha(start, f"start: {name}", lora, tower_lora)
    return start


def check_rank_and_alpha(start: LlavaParts, source: str, lora: Lora | None, tower_lora: Lora | None) -> None:
    """Compare rank and alpha of adapters with the settings of the run; `source` is their name for errors.

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
            log.info("%s: its adapter is not used, because this run has no %s", source, key)
            continue
        rank = next(len(value) for name, value in state.items() if ".lora_A." in name)
        if rank != wanted.rank or alpha not in (None, wanted.alpha):
            theirs = f"rank {rank}" + (f" and alpha {alpha}" if alpha else "")
            ours = f"rank {wanted.rank}" + (f" and alpha {wanted.alpha}" if alpha else "")
            fix = f"{key}.rank={rank}" + (f" {key}.alpha={alpha}" if alpha else "")
            raise ModelError(f"{source}: its adapter has {theirs}, and this run has {ours}; set {fix}.")
        if alpha is None:
            log.info("%s: the alpha of its adapter is unknown; it must be %s.alpha=%d", source, key, wanted.alpha)


@torch.no_grad()
def load_initial_parts(
    start: LlavaParts, projector: Projector, language: nn.Module | None, tower: nn.Module | None
) -> None:
    """Copy initial weights into a projector, and into adapters that are attached to the models.

    Raises:
        ModelError: an adapter has other layers or shapes.
    """
    for name, value in start.projector.items():
        projector.get_parameter(name).copy_(value)
    if isinstance(language, PeftModel) and start.language is not None:
        config = language.get_base_model().config
        _copy_adapter(language, split_adapter(start.language, config, f"start: {start.source}"), start.source, "lora")
    if isinstance(tower, PeftModel) and start.tower is not None:
        _copy_adapter(tower, _drop_unused_layer(tower, start.tower), start.source, "tower_lora")


def _copy_adapter(model: PeftModel, weights: Mapping[str, Tensor], source: str, key: str) -> None:
    parameters = {
        encoder_name(name.replace(".default.", ".")): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    state = {encoder_name(name): value for name, value in weights.items()}
    if (targets := target_names(state)) != (own := target_names(parameters)):
        raise ModelError(
            f"start: {source}: its adapter is on {', '.join(targets)}, and this run's is on {', '.join(own)}; "
            f"set {key}.targets=[{','.join(targets)}]."
        )
    fix = "its adapter is for another model, use the one it was trained on"
    check_shapes(state, parameters, f"start: {source}", fix)
    for name, parameter in parameters.items():
        parameter.copy_(state[name])


def _drop_unused_layer(tower: PeftModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the adapter of the tower's last layer: XTuner saves it, but features of layer -2 do not use that layer."""
    adapted = [int(found.group(1)) for name, _ in tower.named_parameters() if (found := _LAYER.search(name))]
    unused = f"encoder.layers.{max(adapted, default=-1) + 1}."
    return {name: value for name, value in weights.items() if unused not in name}


def encoder_name(name: str) -> str:
    """A weight name from `encoder.layers.` on, without the prefixes of wrappers; other names stay the same."""
    return name[max(0, name.find("encoder.layers.")) :]
