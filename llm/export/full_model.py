"""Full language models from XTuner checkpoints: check names and shapes, cast, write a model folder."""

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from transformers import LlamaConfig

from llm.checkpoints.shards import LazyTensor, lazy_cast
from llm.export.internlm_layout import rename_to_llama
from llm.export.saving import check_weights, checkpoint_dtype, save_lazy_model
from llm.loading import load_model_config, load_template, make_generation_config, model_folder, silence_libraries


def to_published_weights(
    weights: Mapping[str, LazyTensor], base: str, source: str, fp32: bool = False
) -> dict[str, LazyTensor]:
    """Every weight of a language model under the names of published checkpoints, in the base model's 16-bit dtype.
    InternLM2 weights get Llama's names.

    Args:
        weights: under their training names: InternLM2's own or those of transformers 4.
        base: the base model; its weights are not read.
        source: of the weights, for errors.
        fp32: keep fp32.

    Raises:
        ModelError: a weight is missing, unexpected or of another shape than in the base model's config; or the base
            model is stored quantized.
    """
    config = load_model_config(base)
    dtype = torch.float32 if fp32 else checkpoint_dtype(model_folder(base, weights=False))
    named = rename_to_llama(weights, config, source) if isinstance(config, LlamaConfig) else weights
    checked = check_weights(named, config, source, "give the config that it was trained with")
    return {name: lazy_cast(weight, dtype) for name, weight in checked.items()}


def total_size(weights: Mapping[str, LazyTensor]) -> int:
    """Size of the weights on disk, in bytes."""
    return sum(prod(weight.shape) * weight.dtype.itemsize for weight in weights.values())


def write_full_model(
    weights: Mapping[str, LazyTensor], base: str, named: str | None, folder: Path, max_shard_size: str = "2GB"
) -> None:
    """Write a Hugging Face model folder. One shard is in memory at a time.

    Args:
        weights: from `to_published_weights`.
        base: the base model, for config and tokenizer.
        named: the chat template of training, if it is not the base model's own.
    """
    silence_libraries()
    template = load_template(base, None, template_name=named)
    config = load_model_config(base)
    save_lazy_model(weights, config, template, folder, max_shard_size)
    make_generation_config(template, config).save_pretrained(folder)
