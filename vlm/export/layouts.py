"""LLaVA layouts on disk: HF-native, official LLaVA, separate parts.

Shapes: V width of the tower, D width of the language model.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel

from llm.chat_template.encoding import ChatTemplate
from llm.export.saving import add_transformers4_keys, save_tokenizer, with_transformers4_rope
from tuning.errors import ModelError
from vlm.export.processor import image_processor, make_processor
from vlm.projector import PROJECTOR_FILE, Projector, save_projector
from vlm.towers.tower import Tower

VOCAB_MULTIPLE = 64
_OFFICIAL = {"linear_1": "0", "linear_2": "2"}
PARTS_README = """\
# The parts of a model that sees

- `language/`: the language model as it was trained, in Hugging Face layout with tokenizer and chat template.
- `{file}`: LLaVA-1.5's mlp2x_gelu: `linear_1` [{hidden}, {width}], exact GELU, `linear_2` [{hidden}, {hidden}].
- tower: {tower}; {patches} features of {width} for each picture, of the last layer but one where it is a transformer.

Each `<image>` in a text is replaced by the {patches} projected features of its picture. To go on with twinlens:

```yaml
model: {folder}/language
tower: {tower_setting}
start: {folder}/{file}
```
"""


@dataclass(frozen=True, slots=True)
class MergedParts:
    """The trained modules, every adapter merged."""

    language: PreTrainedModel
    projector: Projector
    tower: Tower
    tower_finetuned: bool


@torch.no_grad()
def resize_vocabulary(language: PreTrainedModel, tokens: int) -> None:
    """Resize embedding and head to `tokens` ids, rounded up to a multiple of 64.

    New rows are the mean of the old rows: their logit is the mean of all logits, so they are never the most likely.
    """
    embedding, head = language.get_input_embeddings(), language.get_output_embeddings()
    assert isinstance(embedding.weight, Tensor) and isinstance(head, torch.nn.Linear)
    if head.bias is not None:
        raise ModelError("--layout hf: this language model's head has a bias, which LLaVA's has not; take parts.")
    old = len(embedding.weight)
    language.resize_token_embeddings(max(old, tokens), pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
        assert layer is not None and isinstance(layer.weight, Tensor)
        layer.weight[old:] = layer.weight[:old].mean(0)


def to_native_llava(merged: MergedParts, image_id: int) -> LlavaForConditionalGeneration:
    """The same modules, by reference, as transformers' LLaVA."""
    network = merged.tower.network
    assert isinstance(network, PreTrainedModel)
    config = LlavaConfig(
        vision_config=network.config,
        text_config=merged.language.config,
        image_token_index=image_id,
        image_seq_length=merged.tower.patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if merged.tower.facts.kind == "clip" else "full",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(merged.language.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = merged.language.base_model
    model.model.vision_tower = network
    model.model.multi_modal_projector.linear_1 = merged.projector.linear_1
    model.model.multi_modal_projector.linear_2 = merged.projector.linear_2
    head = merged.language.get_output_embeddings()
    assert isinstance(head, torch.nn.Linear)
    model.lm_head = head
    model.generation_config = merged.language.generation_config
    return model.eval()


def save_native(
    model: LlavaForConditionalGeneration, tower: Tower, tokenizer: Any, folder: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write HF-native LLaVA with transformers 4's weight names, which version 5 and other readers know."""
    inner = model.model
    weights = {f"language_model.model.{name}": value for name, value in inner.language_model.state_dict().items()}
    weights |= {f"vision_tower.vision_model.{name}": value for name, value in inner.vision_tower.state_dict().items()}
    weights |= {
        f"multi_modal_projector.{name}": value for name, value in inner.multi_modal_projector.state_dict().items()
    }
    if not model.config.tie_word_embeddings:
        weights["language_model.lm_head.weight"] = model.lm_head.weight
    _write_weights(weights, folder, dtype, shard)
    config = model.config.to_dict() | {"architectures": ["LlavaForConditionalGeneration"], **_dtype_of(dtype)}
    config["text_config"] = with_transformers4_rope(config["text_config"])
    _write_json(folder / "config.json", config)
    model.generation_config.save_pretrained(folder)
    make_processor(tower, tokenizer).save_pretrained(folder)
    image_processor(tower).save_pretrained(folder)


def save_official(
    merged: MergedParts, template: ChatTemplate, named: str, folder: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write the layout of LLaVA's own code, for CLIP and Llama; it includes a fine-tuned tower.

    Args:
        named: the original tower, whose config and preprocessing that code reads.
    """
    language, tower = merged.language, merged.tower
    weights = dict(language.state_dict())
    if language.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for name, value in merged.projector.state_dict().items():
        layer, part = name.split(".")
        weights[f"model.mm_projector.{_OFFICIAL[layer]}.{part}"] = value
    if merged.tower_finetuned:
        inside = "model.vision_tower.vision_tower.vision_model."
        weights |= {inside + name: value for name, value in tower.network.state_dict().items()}
    _write_weights(weights, folder, dtype, shard)
    config = with_transformers4_rope(language.config.to_dict()) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        **_dtype_of(dtype),
        "image_aspect_ratio": "pad",
        "mm_hidden_size": tower.width,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": named,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": merged.tower_finetuned,
        "use_mm_proj": True,
    }
    _write_json(folder / "config.json", config)
    language.generation_config.save_pretrained(folder)
    save_tokenizer(template, folder)


def save_parts(
    merged: MergedParts, template: ChatTemplate, folder: Path, destination: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write language model, projector and a fine-tuned tower, each in its own place.

    Args:
        destination: the final name of `folder`.
    """
    language: Any = merged.language
    language.to(dtype).save_pretrained(folder / "language", max_shard_size=shard)
    add_transformers4_keys(folder / "language")
    save_tokenizer(template, folder / "language")
    save_projector(merged.projector, folder)
    tower = merged.tower
    if merged.tower_finetuned:
        save_tower(tower, folder / "tower", dtype, shard)
    text = PARTS_README.format(
        file=PROJECTOR_FILE,
        folder=destination,
        hidden=merged.projector.linear_2.out_features,
        patches=tower.patches,
        width=tower.width,
        tower="`tower/`, as it was trained" if merged.tower_finetuned else f"`{tower.name}`, as it is and not copied",
        tower_setting=f"{destination}/tower" if merged.tower_finetuned else tower.name,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def save_tower(tower: Tower, folder: Path, dtype: torch.dtype, shard: str) -> None:
    """Write a CLIP or SigLIP tower and its preprocessing, with transformers 4's weight names."""
    network: Any = tower.network
    folder.mkdir(exist_ok=True)
    _write_weights(
        {f"vision_model.{name}": value for name, value in network.state_dict().items()}, folder, dtype, shard
    )
    config = network.config.to_dict() | {"architectures": [type(network).__name__], **_dtype_of(dtype)}
    _write_json(folder / "config.json", config)
    image_processor(tower).save_pretrained(folder)


def _write_weights(weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype, shard: str) -> None:
    cast = {
        name: value.to(dtype).contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in weights.items()
    }
    save_torch_state_dict(cast, folder, max_shard_size=shard)


def _dtype_of(dtype: torch.dtype) -> dict[str, str]:
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "torch_dtype": name}


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
