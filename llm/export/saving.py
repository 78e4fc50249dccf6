"""Model saving: destination and disk checks, logit comparison, config and tokenizer for all transformers versions."""

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.config_json import stored_dtype
from llm.checkpoints.shards import weight_files
from tuning.errors import ConfigError, DeviceError
from tuning.settings import Quant

LOGIT_TOLERANCE = 1e-3  # of what is written against what was trained, both fp32, relative to the largest logit


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """Difference of two sets of logits: the largest difference relative to the largest logit, and the share of
    positions with the same most likely token."""

    difference: float
    same_token: float

    def __str__(self) -> str:
        return f"relative difference {self.difference:.1e}, same next token at {self.same_token:.1%} of positions"


def compare_logits(one: torch.Tensor, other: torch.Tensor) -> LogitDifference:
    """Compare float[N, V] with float[N, V]."""
    difference = float((one - other).abs().max() / one.abs().max())
    return LogitDifference(difference, float((one.argmax(-1) == other.argmax(-1)).float().mean()))


def checkpoint_dtype(folder: Path) -> torch.dtype:
    """The 16-bit dtype of a model's weights on disk; bf16 for other dtypes.

    Raises:
        ModelError: the model is stored quantized.
    """
    return torch.float16 if stored_dtype(folder) == "fp16" else torch.bfloat16


def quant_as_stored(folder: Path) -> Quant:
    """Settings that load a model in the dtype of its weights on disk, 16 bits or fp32.

    Raises:
        ModelError: the model is stored quantized.
    """
    return Quant(bits=16, compute=stored_dtype(folder))


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round fp32 weights to the values that they have in `dtype`."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()


def checkpoint_size(folder: Path) -> int:
    """Size in bytes of the weight files of a model folder."""
    return sum(file.stat().st_size for file in weight_files(folder))


def check_destination(destination: Path, needed: int) -> None:
    """Check that a new folder can be written and that `needed` bytes fit.

    Raises:
        ConfigError: it exists.
        DeviceError: it cannot be written, or the disk is too small.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination}: already exists; give a new folder.")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=destination.parent).close()
        free = shutil.disk_usage(destination.parent).free
    except OSError as error:
        raise DeviceError(f"{destination}: cannot be written ({error.strerror}); give another folder.") from error
    if free < needed:
        raise DeviceError(
            f"{destination}: {needed / 2**30:.1f} GiB are needed and {free / 2**30:.1f} are free; "
            "free some or give another disk."
        )


def check_shard_size(size: str) -> None:
    """Refuse an invalid shard size.

    Raises:
        ConfigError: it is invalid.
    """
    if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?\s*[KMGT]i?B", size):
        raise ConfigError(f"--max-shard-size {size}: not a size; write one such as 500MB or 2GB.")


def save_model(
    model: PreTrainedModel, template: ChatTemplate, folder: Path, dtype: torch.dtype, max_shard_size: str = "2GB"
) -> None:
    """Write a model in `dtype` with tokenizer and chat template, for transformers to load."""
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)  # pyright: ignore[reportArgumentType]
    add_transformers4_keys(folder)
    save_tokenizer(template, folder)


def add_transformers4_keys(folder: Path) -> None:
    """Add transformers 4's keys for rotary embeddings and dtype, which it would otherwise replace by defaults."""
    file = folder / "config.json"
    config = with_transformers4_rope(json.loads(file.read_text(encoding="utf-8")))
    config["torch_dtype"] = config["dtype"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def with_transformers4_rope(config: dict[str, Any]) -> dict[str, Any]:
    """A config with its rotary settings under transformers 4's keys as well."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return config
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaled = scaling.get("rope_type", "default") != "default"
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if scaled else None}


def save_tokenizer(template: ChatTemplate, folder: Path) -> None:
    """Write tokenizer and chat template, with names that transformers 4 knows too."""
    template.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
