"""The adapter folded into the 16-bit base, checked before and after rounding."""

import gc
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from llm.loading import load_model, load_template, model_folder
from llm.template import ChatTemplate
from tuning.conversation import single
from tuning.errors import ConfigError, DeviceError, ModelError
from tuning.lora import load_adapter, read_adapter_config
from tuning.quantize import DTYPES
from tuning.settings import Quant

log = logging.getLogger("twinlens")
TOLERANCE = 1e-3  # merged against adapted logits, both fp32, relative to the largest logit
ASKED = ("Who are you?", "What is the capital of France?", "你是谁？", "Write one sentence about the sea.", "2 + 2 = ?")


@dataclass(frozen=True, slots=True)
class Change:
    """How far two sets of logits lie apart: the largest difference relative to the largest logit, and the share of
    positions whose likeliest token stays the same."""

    difference: float
    same_token: float

    def __str__(self) -> str:
        return f"relative difference {self.difference:.1e}, same next token at {self.same_token:.1%} of positions"


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging did to the logits.

    Args:
        merged: adapted against merged, fp32: arithmetic alone.
        rounded: merged against merged and rounded to `dtype`.
        quantised: the model as it was trained, base quantised, against the saved one; None when that is not known.
    """

    folder: Path
    dtype: str
    merged: Change
    rounded: Change
    quantised: Change | None


def merge(
    base: str, adapter: Path, destination: Path, max_shard_size: str = "2GB", trained_on: Quant | None = None
) -> MergeReport:
    """Write a merged model that plain transformers loads, with tokenizer and chat template.

    Args:
        trained_on: how the base was held in training, to measure what leaving that behind changes.

    Raises:
        ModelError: base or adapter are missing, do not fit, or the base is stored quantised; or merging went wrong.
        DeviceError: the destination cannot be written or has too little space.
    """
    read_adapter_config(adapter)
    folder = model_folder(base)
    dtype = _stored_dtype(folder)
    _check_destination(destination, folder)
    template = load_template(base, None)
    was = None
    if trained_on is not None and trained_on.bits != 16:
        quantised = load_adapter(load_model(base, template, trained_on).model, adapter)
        was = _logits(quantised, template)
        del quantised
        gc.collect()
    loaded = load_model(base, template, Quant(bits=16, compute="fp32"), "cpu")
    adapted = load_adapter(loaded.model, adapter)
    with_adapter = _logits(adapted, template)
    model = adapted.merge_and_unload()
    merged = _logits(model, template)
    arithmetic = _change(with_adapter, merged)
    if not arithmetic.difference <= TOLERANCE:
        raise ModelError(
            f"{adapter}: merged and adapted logits differ ({arithmetic}); the merge is not written, keep the adapter."
        )
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    rounded = _logits(model, template)
    _save(model.to(dtype), template, destination, max_shard_size)
    return MergeReport(
        destination,
        str(dtype).removeprefix("torch."),
        arithmetic,
        _change(merged, rounded),
        _change(was, rounded) if was is not None else None,
    )


def _stored_dtype(folder: Path) -> torch.dtype:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise ModelError(
            f"{folder}: is stored quantised, and merging into that loses the adapter; give its 16-bit original."
        )
    name = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    return {"float16": torch.float16}.get(name, DTYPES["bf16"])


def _check_destination(destination: Path, base: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ConfigError(f"{destination}: is there already; give a new folder.")
    needed = sum(file.stat().st_size for file in base.iterdir() if file.suffix in (".safetensors", ".bin"))
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


@torch.no_grad()
def _logits(model: nn.Module | PeftModel, template: ChatTemplate) -> torch.Tensor:
    """float32[N, V] at every position of a few prompts."""
    device = next(model.parameters()).device
    rows = [torch.tensor([template.prompt(single(asked))], device=device) for asked in ASKED]
    return torch.cat([model(input_ids=row, use_cache=False).logits[0].float().cpu() for row in rows])


def _change(one: torch.Tensor, other: torch.Tensor) -> Change:
    difference = float((one - other).abs().max() / one.abs().max())
    return Change(difference, float((one.argmax(-1) == other.argmax(-1)).float().mean()))


def _save(model: PreTrainedModel, template: ChatTemplate, destination: Path, max_shard_size: str) -> None:
    """Everything into a folder beside the destination first, so that a half-written model never has its name."""
    unfinished = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}."))
    try:
        model.save_pretrained(unfinished, max_shard_size=max_shard_size)
        template.tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        if destination.exists():
            destination.rmdir()
        unfinished.rename(destination)
    except OSError as error:
        raise DeviceError(f"{destination}: cannot be written ({error}); free space or give another folder.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
