"""Save models: destination and disk checks, logit comparison, config and tokenizer for transformers 4 and 5."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.config_json import read_model_config
from llm.checkpoints.shards import LazyTensor, check_shapes, weight_files, write_weights
from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.settings import Quant

LOGIT_TOLERANCE = 1e-3  # largest difference between merged and trained logits in fp32, relative to the largest logit


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """Difference of two sets of logits.

    Args:
        difference: the largest difference, relative to the largest logit.
        same_token: the share of positions with the same most likely token.
    """

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
    return torch.float16 if quant_as_stored(folder).compute == "fp16" else torch.bfloat16


def quant_as_stored(folder: Path) -> Quant:
    """Settings that load a model in the dtype of its weights on disk: bf16, fp16 or fp32.

    Raises:
        ModelError: the model is stored quantized.
    """
    config = read_model_config(folder)
    if "quantization_config" in config:
        raise ModelError(
            f"{folder}: is stored quantized, so the trained changes would be lost; use the 16-bit original."
        )
    name = config.get("dtype") or config.get("torch_dtype")
    return Quant(bits=16, compute="fp16" if name == "float16" else "fp32" if name == "float32" else "bf16")


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round fp32 weights to the precision of `dtype`; they stay fp32."""
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
            f"{destination}: {needed / 2**30:.1f} GiB are needed, but {free / 2**30:.1f} GiB are free; "
            "free space or give a folder on another disk."
        )


def check_shard_size(size: str) -> None:
    """Refuse an invalid shard size.

    Raises:
        ConfigError: it is invalid.
    """
    if not re.fullmatch(r"(?=.*[1-9])\d+(\.\d+)?\s*[KMGT]B", size):
        raise ConfigError(f"--max-shard-size {size}: not a size; write one such as 500MB or 2GB.")


def save_model(
    model: PreTrainedModel, template: ChatTemplate, folder: Path, dtype: torch.dtype, max_shard_size: str = "2GB"
) -> None:
    """Write a model in `dtype` with tokenizer and chat template, for transformers to load."""
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard_size)  # pyright: ignore[reportArgumentType]
    add_transformers4_keys(folder)
    save_tokenizer(template, folder)


def check_weights(
    weights: Mapping[str, LazyTensor], config: PreTrainedConfig, source: object, fix: str
) -> dict[str, LazyTensor]:
    """Check names and shapes against the model of a config. The result has no tied weights and no rotary frequencies.

    Args:
        weights: under the names of published checkpoints.
        source: of the weights, for errors; `fix`: what the user should do.

    Raises:
        ModelError: a weight is missing, unexpected or of another shape.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # Published files keep some matrices separate that are one matrix in the modules of transformers 5.
    published = revert_weight_conversion(model, model.state_dict())
    tied = model.all_tied_weights_keys
    kept = {name: weight for name, weight in weights.items() if name not in tied and not name.endswith(".inv_freq")}
    check_shapes(kept, {name: tensor for name, tensor in published.items() if name not in tied}, source, fix)
    return kept


def save_lazy_model(
    weights: Mapping[str, LazyTensor],
    config: PreTrainedConfig,
    template: ChatTemplate,
    folder: Path,
    max_shard_size: str,
) -> None:
    """Write a model folder from weights on disk. One shard is in memory at a time."""
    write_weights(weights, folder, max_shard_size)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = next(iter(weights.values())).dtype
    config.save_pretrained(folder)
    add_transformers4_keys(folder)
    save_tokenizer(template, folder)


def add_transformers4_keys(folder: Path) -> None:
    """Add transformers 4's keys for rotary embeddings and dtype to config.json; without them it uses defaults."""
    file = folder / "config.json"
    config = with_transformers4_rope(json.loads(file.read_text(encoding="utf-8")))
    config["torch_dtype"] = config["dtype"]
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def with_transformers4_rope(config: dict[str, Any]) -> dict[str, Any]:
    """A config that has its rotary settings also under transformers 4's keys."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" not in rope:
        return config
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaled = scaling.get("rope_type", "default") != "default"
    return config | {"rope_theta": rope["rope_theta"], "rope_scaling": scaling if scaled else None}


def save_tokenizer(template: ChatTemplate, folder: Path) -> None:
    """Write tokenizer and chat template, with names that transformers 4 also knows."""
    template.tokenizer.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
