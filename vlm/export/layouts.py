"""Write a LLaVA checkpoint in one of three layouts: HF-native, official LLaVA, separate parts.

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
from llm.export.saving import save_model, save_tokenizer, with_transformers4_rope
from tuning.errors import ModelError
from vlm.export.processor import image_processor, make_processor
from vlm.projector import PROJECTOR_FILE, Projector, save_projector
from vlm.towers.tower import Tower

VOCAB_MULTIPLE = 64
PARTS_README = """\
# Parts of a LLaVA model

- `language/`: the fine-tuned language model in Hugging Face layout, with tokenizer and chat template.
- `{file}`: the projector, LLaVA-1.5's mlp2x_gelu: `linear_1` [{hidden}, {width}], exact GELU,
  `linear_2` [{hidden}, {hidden}].
- vision tower: {tower}; {patches} features of width {width} for each picture. A transformer gives those of layer -2.

The {patches} projected features of a picture replace its `<image>` in the text. To continue training with twinlens:

```yaml
model: {folder}/language
tower: {tower_setting}
start: {folder}/{file}
```
"""


@dataclass(frozen=True, slots=True)
class MergedParts:
    """The trained modules with all adapters merged."""

    language: PreTrainedModel
    projector: Projector
    tower: Tower
    tower_finetuned: bool


@torch.no_grad()
def resize_vocabulary(language: Any, tokens: int) -> None:
    """Resize embedding and head to `tokens` ids, rounded up to a multiple of 64.

    New rows are the mean of the old rows. Their logit is the mean of all logits, so the model never predicts them.
    """
    if language.get_output_embeddings().bias is not None:
        raise ModelError("--layout hf: this model's lm_head has a bias, LLaVA's has none; use --layout parts.")
    old = len(language.get_input_embeddings().weight)
    language.resize_token_embeddings(max(old, tokens), pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    for layer in (language.get_input_embeddings(), language.get_output_embeddings()):
        layer.weight[old:] = layer.weight[:old].mean(0)


def to_native_llava(merged: MergedParts, image_id: int) -> LlavaForConditionalGeneration:
    """transformers' LLaVA model built from the same modules, without a copy."""
    language: Any = merged.language
    network: Any = merged.tower.network
    config = LlavaConfig(
        vision_config=network.config,
        text_config=language.config,
        image_token_index=image_id,
        image_seq_length=merged.tower.patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if merged.tower.facts.kind == "clip" else "full",
        projector_hidden_act="gelu",
        multimodal_projector_bias=True,
        tie_word_embeddings=bool(language.config.tie_word_embeddings),
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.language_model = language.base_model
    model.model.vision_tower = network
    model.model.multi_modal_projector.linear_1 = merged.projector.linear_1
    model.model.multi_modal_projector.linear_2 = merged.projector.linear_2
    model.lm_head = language.get_output_embeddings()
    model.generation_config = language.generation_config
    return model.eval()


def save_native(
    model: LlavaForConditionalGeneration, tower: Tower, tokenizer: Any, folder: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write HF-native LLaVA with the weight names of transformers 4, which version 5 and other tools also read."""
    inner = model.model
    weights = {
        **inner.language_model.state_dict(prefix="language_model.model."),
        **inner.vision_tower.state_dict(prefix="vision_tower.vision_model."),
        **inner.multi_modal_projector.state_dict(prefix="multi_modal_projector."),
    }
    if not model.config.tie_word_embeddings:
        weights |= model.lm_head.state_dict(prefix="language_model.lm_head.")
    config: dict[str, Any] = {**model.config.to_dict(), "architectures": ["LlavaForConditionalGeneration"]}
    config["text_config"] = with_transformers4_rope(config["text_config"])
    _write_checkpoint(weights, config, folder, dtype, shard)
    model.generation_config.save_pretrained(folder)
    make_processor(tower, tokenizer).save_pretrained(folder)
    image_processor(tower).save_pretrained(folder)


def save_official(
    merged: MergedParts, template: ChatTemplate, tower_name: str, folder: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write the layout of LLaVA's own code, for CLIP and Llama, with the tower's weights if they were fine-tuned.

    Args:
        tower_name: the original tower; LLaVA's code reads its config and preprocessing.
    """
    language, projector, tower = merged.language, merged.projector, merged.tower
    weights = dict(language.state_dict())
    if language.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    weights |= projector.linear_1.state_dict(prefix="model.mm_projector.0.")
    weights |= projector.linear_2.state_dict(prefix="model.mm_projector.2.")
    if merged.tower_finetuned:
        weights |= tower.network.state_dict(prefix="model.vision_tower.vision_tower.vision_model.")
    config = with_transformers4_rope(language.config.to_dict()) | {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "image_aspect_ratio": "pad",
        "mm_hidden_size": tower.width,
        "mm_patch_merge_type": "flat",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower_name,
        "tune_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": merged.tower_finetuned,
        "use_mm_proj": True,
    }
    _write_checkpoint(weights, config, folder, dtype, shard)
    language.generation_config.save_pretrained(folder)
    save_tokenizer(template, folder)


def save_parts(
    merged: MergedParts, template: ChatTemplate, folder: Path, destination: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write the language model, the projector and, if it was fine-tuned, the tower, each in its own place.

    Args:
        destination: the final name of `folder`.
    """
    save_model(merged.language, template, folder / "language", dtype, shard)
    save_projector(merged.projector, folder)
    tower, finetuned = merged.tower, merged.tower_finetuned
    if finetuned:
        save_tower(tower, folder / "tower", dtype, shard)
    text = PARTS_README.format(
        file=PROJECTOR_FILE,
        folder=destination,
        hidden=merged.projector.linear_2.out_features,
        patches=tower.patches,
        width=tower.width,
        tower="`tower/`, fine-tuned" if finetuned else f"`{tower.name}`, not fine-tuned and not copied",
        tower_setting=f"{destination}/tower" if finetuned else tower.name,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def save_tower(tower: Tower, folder: Path, dtype: torch.dtype, shard: str) -> None:
    """Write a CLIP or SigLIP tower and its preprocessing, with the weight names of transformers 4."""
    network: Any = tower.network
    folder.mkdir(exist_ok=True)
    weights = network.state_dict(prefix="vision_model.")
    config = network.config.to_dict() | {"architectures": [type(network).__name__]}
    _write_checkpoint(weights, config, folder, dtype, shard)
    image_processor(tower).save_pretrained(folder)


def _write_checkpoint(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path, dtype: torch.dtype, shard: str
) -> None:
    """Write weights in `dtype`, and config.json with the dtype keys of transformers 4 and 5."""
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in weights.items()}
    save_torch_state_dict(cast, folder, max_shard_size=shard)
    name = str(dtype).removeprefix("torch.")
    text = json.dumps({**config, "dtype": name, "torch_dtype": name}, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
