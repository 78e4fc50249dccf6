"""Merge a LoRA adapter into its 16-bit base model and compare the logits."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.config_json import model_type
from llm.export.internlm_layout import save_internlm2
from llm.export.saving import (
    LOGIT_TOLERANCE,
    LogitDifference,
    check_destination,
    check_shard_size,
    checkpoint_dtype,
    checkpoint_size,
    compare_logits,
    quant_as_stored,
    save_model,
)
from llm.internlm.adapter import load_llama_or_internlm2_adapter
from llm.loading import load_model, load_template, model_folder
from tuning.atomic import atomic_folder
from tuning.data.conversation import single_turn
from tuning.errors import ModelError
from tuning.modules.fp32_upcast import fp32_upcast, merge_adapters
from tuning.modules.lora import read_adapter_config
from tuning.settings import Quant

MergeLayout = Literal["hf", "internlm2"]
CHECK_PROMPTS = (
    "Who are you?",
    "What is the capital of France?",
    "你是谁？",
    "Write one sentence about the sea.",
    "2 + 2 = ?",
)


@dataclass(frozen=True, slots=True)
class MergeReport:
    """Differences of the logits.

    Args:
        dtype: of the saved model.
        merged: base with adapter against merged model, in fp32; this is the rounding of the arithmetic.
        rounded: merged model in fp32 against the same model rounded to `dtype`.
        quantized: adapter on the quantized base, as in training, against the saved model; None if unknown.
    """

    dtype: str
    merged: LogitDifference
    rounded: LogitDifference
    quantized: LogitDifference | None


def merge(
    base: str,
    adapter: Path,
    destination: Path,
    max_shard_size: str = "2GB",
    trained_on: Quant | None = None,
    named: str | None = None,
    layout: MergeLayout = "hf",
    device: str = "cpu",
) -> MergeReport:
    """Write a merged model folder that transformers loads, with tokenizer and chat template.

    Args:
        trained_on: quantization of the base model in training, to measure the difference to the 16-bit base.
        named: the chat template of training, if it is not the base model's own.
        layout: `internlm2` writes InternLM2's layout, for tools that run InternLM2's own code.
        device: of the merge; the base model keeps its 16-bit dtype and computes in fp32.

    Raises:
        ModelError: base model or adapter is missing or they do not match; the base model is stored quantized or in
            another layout; or the merged logits differ.
        ConfigError: the destination exists, or the shard size is invalid.
        DeviceError: the destination cannot be written or has too little space.
    """
    check_shard_size(max_shard_size)
    read_adapter_config(adapter)
    folder = model_folder(base)
    if layout == "internlm2" and (kind := model_type(folder)) != "internlm2":
        raise ModelError(f"--layout internlm2: {folder} has the model type {kind}; omit --layout.")
    dtype = checkpoint_dtype(folder)
    check_destination(destination, checkpoint_size(folder))
    template = load_template(base, None, template_name=named)
    as_trained = None
    if trained_on and trained_on.bits != 16:
        quantized = load_llama_or_internlm2_adapter(load_model(base, template, trained_on).model, adapter)
        as_trained = _logits(quantized, template)
        del quantized
        gc.collect()  # before the next model loads
    loaded = load_model(base, template, quant_as_stored(folder), device)
    adapted = load_llama_or_internlm2_adapter(loaded.model, adapter)
    with fp32_upcast(adapted):
        with_adapter = _logits(adapted, template)
    with fp32_upcast(adapted, merged=True):
        merged = _logits(adapted, template)
    arithmetic = compare_logits(with_adapter, merged)
    if not arithmetic.difference <= LOGIT_TOLERANCE:
        raise ModelError(
            f"{adapter}: merged and adapted logits differ ({arithmetic}), so nothing is written; use the adapter."
        )
    model = merge_adapters(adapted, dtype)
    with fp32_upcast(model):
        rounded = _logits(model, template)
    with atomic_folder(destination) as unfinished:
        if layout == "internlm2":
            save_internlm2(model, folder, template, unfinished, max_shard_size)
        else:
            save_model(model, template, unfinished, dtype, max_shard_size)
    return MergeReport(
        str(dtype).removeprefix("torch."),
        arithmetic,
        compare_logits(merged, rounded),
        compare_logits(as_trained, rounded) if as_trained is not None else None,
    )


@torch.no_grad()
def _logits(model: nn.Module, template: ChatTemplate) -> torch.Tensor:
    """float32[N, V] logits at the N positions of `CHECK_PROMPTS`, in one batch, padded on the right."""
    prompts = [torch.tensor(template.prompt(single_turn(asked))) for asked in CHECK_PROMPTS]
    batch = pad_sequence(prompts, batch_first=True, padding_value=template.pad_id)
    logits = model(input_ids=batch.to(next(model.parameters()).device), use_cache=False).logits
    return torch.cat([row[: len(prompt)].float().cpu() for row, prompt in zip(logits, prompts, strict=True)])
