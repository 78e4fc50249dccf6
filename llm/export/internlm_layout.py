"""Convert between InternLM2 and Llama layouts, tensor by tensor, without a model in memory."""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.shards import LazyTensor, lazy_from_tensor, lazy_weights, write_weights
from llm.export.saving import check_destination, check_shard_size, check_weights, checkpoint_size, save_lazy_model
from llm.internlm.loading import internlm_config, is_internlm
from llm.internlm.weight_names import FUSED_QKV, SPLIT_QKV, fuse_qkv, internlm2_name, llama_name, split_qkv
from llm.loading import load_template, model_folder
from tuning.atomic import atomic_folder
from tuning.errors import ModelError

_COPIED = ("config.json", "generation_config.json", "tokenizer", "special_tokens_map", "added_tokens")


def convert_internlm(name: str, destination: Path, max_shard_size: str) -> int:
    """Write an InternLM 1, 2 or 2.5 checkpoint as a Llama checkpoint with the same values; check names and shapes.

    Returns:
        The number of weights.

    Raises:
        ModelError: not an InternLM, or a weight is missing, unexpected or of another shape.
        ConfigError: the destination exists, or the shard size is invalid.
        DeviceError: the destination cannot be written or has too little space.
    """
    check_shard_size(max_shard_size)
    folder = model_folder(name)
    if not is_internlm(folder):
        raise ModelError(f"{name}: not an InternLM of version 1, 2 or 2.5, so it needs no conversion; use it directly.")
    check_destination(destination, checkpoint_size(folder))
    config = internlm_config(folder)
    weights = to_llama(lazy_weights(folder), config, folder)
    template = load_template(name, None)
    with atomic_folder(destination) as unfinished:
        save_lazy_model(weights, config, template, unfinished, max_shard_size)
        to_llama(lazy_weights(unfinished), config, unfinished)
    return len(weights)


def to_llama(weights: Mapping[str, LazyTensor], config: LlamaConfig, folder: Path) -> dict[str, LazyTensor]:
    """The weights of either layout under Llama's names, with `wqkv` split.

    Raises:
        ModelError: a weight is missing, unexpected, or of another shape than in the config.
    """
    return check_weights(rename_to_llama(weights, config, folder), config, folder, "download the model again")


def rename_to_llama(weights: Mapping[str, LazyTensor], config: LlamaConfig, source: object) -> dict[str, LazyTensor]:
    """As `to_llama`, but without the check against the config. `source` names the weights in errors.

    Raises:
        ModelError: the rows of `wqkv` are not a multiple of the heads.
    """
    heads = config.num_attention_heads
    groups = config.num_key_value_heads or heads
    ours: dict[str, LazyTensor] = {}
    for name, weight in weights.items():
        if FUSED_QKV not in name:
            ours[llama_name(name)] = weight
            continue
        size, odd = divmod(weight.shape[0], heads + 2 * groups)
        if odd:
            raise ModelError(f"{source}: {name} has {weight.shape[0]} rows; download the model again.")
        for number, (part, count) in enumerate(zip(SPLIT_QKV, (heads, groups, groups), strict=True)):
            read = partial(_part, weight, heads, groups, number)
            ours[name.replace(FUSED_QKV, part)] = LazyTensor((count * size, *weight.shape[1:]), weight.dtype, read)
    return ours


def to_internlm2(weights: Mapping[str, LazyTensor], groups: int) -> dict[str, LazyTensor]:
    """Llama's weights under InternLM2's names, with fused `wqkv`; the inverse of `to_llama`."""
    theirs: dict[str, LazyTensor] = {}
    query, *others = SPLIT_QKV
    for name, weight in weights.items():
        if any(part in name for part in others):
            continue
        if query not in name:
            theirs[internlm2_name(name)] = weight
            continue
        parts = [weights[name.replace(query, part)] for part in SPLIT_QKV]
        shape = (sum(part.shape[0] for part in parts), *weight.shape[1:])
        theirs[name.replace(query, FUSED_QKV)] = LazyTensor(shape, weight.dtype, partial(_fused, parts, groups))
    return theirs


def save_internlm2(
    model: PreTrainedModel, source: Path, template: ChatTemplate, folder: Path, max_shard_size: str
) -> None:
    """Write a Llama model in the layout of its InternLM2 checkpoint.

    Args:
        source: the checkpoint, whose config and tokenizer files are copied, but not its code.
        template: the chat template to write.
    """
    weights = {name: lazy_from_tensor(tensor) for name, tensor in model.state_dict().items()}
    write_weights(to_internlm2(weights, model.config.num_key_value_heads), folder, max_shard_size)
    to_llama(lazy_weights(folder), internlm_config(source), folder)
    for file in source.iterdir():
        if file.name.startswith(_COPIED) and file.suffix != ".py":
            shutil.copyfile(file, folder / file.name)
    tokens = folder / "tokenizer_config.json"
    settings = json.loads(tokens.read_text(encoding="utf-8")) if tokens.exists() else {}
    settings["chat_template"] = template.tokenizer.chat_template
    tokens.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _part(weight: LazyTensor, heads: int, groups: int, number: int) -> Tensor:
    return split_qkv(weight.read(), heads, groups)[number]


def _fused(parts: list[LazyTensor], groups: int) -> Tensor:
    return fuse_qkv(*(part.read() for part in parts), groups=groups)
