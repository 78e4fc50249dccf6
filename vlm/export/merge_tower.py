"""Merge a LoRA adapter into a CLIP or SigLIP tower and compare the features before and after."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from llm.export.saving import LOGIT_TOLERANCE, check_destination, check_shard_size
from tuning.atomic import atomic_folder
from tuning.errors import ModelError
from tuning.modules.lora import PEFT_PREFIX, attach_adapter_weights, read_adapter_config, read_adapter_weights
from vlm.checkpoints.initialize import encoder_name
from vlm.export.layouts import save_tower
from vlm.export.llava import example_picture
from vlm.towers.registry import load_tower, tower_facts


def merge_tower(name: str, adapter: Path, destination: Path, max_shard_size: str) -> float:
    """Merge an adapter into its tower, and write the tower in fp32 with its preprocessing.

    Args:
        adapter: a run's `adapter/tower`, or XTuner's `visual_encoder_adapter`.

    Returns:
        The largest difference of the features, relative to the largest feature.

    Raises:
        ModelError: tower or adapter are missing or do not match, or the merged features differ.
        ConfigError: the destination exists, or the shard size is invalid.
        DeviceError: the destination cannot be written.
    """
    check_shard_size(max_shard_size)
    config = read_adapter_config(adapter)
    if not tower_facts(name).trainable:
        raise ModelError(f"--is-clip: {name} is neither CLIP nor SigLIP of transformers, so it has no adapter.")
    check_destination(destination, 0)
    state = {PEFT_PREFIX + encoder_name(name): weight for name, weight in read_adapter_weights(adapter).items()}
    tower = load_tower(name, torch.device("cpu"), torch.float32)
    assert isinstance(tower.network, PreTrainedModel)
    adapted: Any = attach_adapter_weights(tower.network, state, config, str(adapter))
    pixels = tower.preprocess(example_picture())[None]
    with torch.no_grad():
        expected = tower(pixels)
        tower.network = adapted.merge_and_unload()
        merged = tower(pixels)
    difference = float((expected - merged).abs().max() / expected.abs().max())
    if not difference <= LOGIT_TOLERANCE:
        raise ModelError(f"{adapter}: merged features differ by {difference:.1e}; nothing is written.")
    with atomic_folder(destination) as unfinished:
        save_tower(tower, unfinished, torch.float32, max_shard_size)
    return difference
