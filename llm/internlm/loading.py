"""Load InternLM 1, 2 and 2.5 checkpoints as Llama models, without remote code.

Version 1 has Llama's weight names. Version 2 has its own names, and one matrix for query, key and value. The loader of
transformers renames and splits while it streams the shards. So no weight is in memory twice, and 4-bit loading works.

Sources: InternEvo's configuration and modeling files of both versions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import ConversionOps, WeightConverter, WeightRenaming

from llm.checkpoints.config_json import model_type, read_model_config
from llm.checkpoints.shards import with_weight_index
from llm.internlm.weight_names import FUSED_QKV, LLAMA_NAMES, SPLIT_QKV, split_qkv
from tuning.errors import ModelError, first_line

MODEL_TYPES = ("internlm", "internlm2")
ROPE = {"origin": "default", "default": "default", "linear": "linear", "dynamic": "dynamic"}
SHARED_FIELDS = (  # the same names in both configs
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"),
)
DEFAULTS: dict[str, Any] = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "pad_token_id": 2}


def is_internlm(folder: Path) -> bool:
    """Whether a checkpoint is of version 1, 2 or 2.5. transformers loads version 3 as Llama by itself."""
    return model_type(folder) in MODEL_TYPES


def internlm_config(folder: Path) -> LlamaConfig:
    """A checkpoint's config as a Llama config. Missing values get the defaults of InternLM's own classes.

    Raises:
        ModelError: an unknown rotary type, or invalid values.
    """
    try:
        return _as_llama(read_model_config(folder), folder)
    except (ValueError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        file = folder / "config.json"
        raise ModelError(f"{file}: cannot be used ({first_line(error)}); download the model again.") from error


def _as_llama(values: Mapping[str, Any], folder: Path) -> LlamaConfig:
    first = values["model_type"] == "internlm"
    # Old configs of version 1 have no `rotary`; InternLM's class then uses dynamic scaling.
    rotary = dict(values.get("rotary", {"type": "dynamic"}) if first else values.get("rope_scaling") or {})
    named = str(rotary.get("type", rotary.get("rope_type", "default")))
    if named not in ROPE:
        raise ModelError(
            f"{folder / 'config.json'}: rotary type {named} is none of {', '.join(ROPE)}; download the model again."
        )
    rope: dict[str, Any] = {"rope_type": ROPE[named]}
    rope["rope_theta"] = float((rotary.get("base") if first else values.get("rope_theta")) or 10000)
    if ROPE[named] != "default":
        rope["factor"] = float(rotary.get("factor", rotary.get("scaling_factor", 1.0)))
    given = {key: values[key] for key in SHARED_FIELDS if values.get(key) is not None}
    return LlamaConfig(
        **(DEFAULTS | given), rope_parameters=rope, attention_bias=bool(values.get("bias", True)), mlp_bias=False
    )


def load_internlm(folder: Path, **options: Any) -> LlamaForCausalLM:
    """The checkpoint as a plain Llama model; `options` are those of `from_pretrained`.

    Raises:
        ModelError: a weight is missing, unexpected, or of another shape.
    """
    config = internlm_config(folder)
    with with_weight_index(folder) as indexed:
        loaded = _InternLM.from_pretrained(indexed, config=config, output_loading_info=True, **options)
    model, found = cast(Any, loaded)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, found[what])):
            raise ModelError(
                f"{folder}: {what.replace('_', ' ')}: {names[0]} ({len(names)} in all); download the model again."
            )
    model.__class__ = LlamaForCausalLM  # `_InternLM` is only needed for loading
    model._weight_conversions = None
    return model


class _InternLM(LlamaForCausalLM):
    """A Llama class of its own, so that the loader finds the weight conversion registered below."""

    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]  # noqa: RUF012 - as transformers has it


class _SplitFused(ConversionOps):
    @torch.no_grad
    def convert(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Tensor]:
        (found,) = input_dict.values()
        config = kwargs["config"]
        parts = split_qkv(found[0], config.num_attention_heads, config.num_key_value_heads)
        return dict(zip(target_patterns, parts, strict=True))


register_checkpoint_conversion_mapping(
    _InternLM.__name__,
    [
        *(WeightRenaming(theirs, ours) for theirs, ours in LLAMA_NAMES.items()),
        WeightConverter(FUSED_QKV, list(SPLIT_QKV), [_SplitFused()]),
    ],
)
