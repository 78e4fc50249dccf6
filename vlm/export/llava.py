"""LLaVA export: merge adapters in 16 bits, compare the logits before and after, write a layout.

Shapes: N positions of a few prompts, K tokens in the vocabulary.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerBase

from llm.chat_template.encoding import ChatTemplate
from llm.export.merge import CHECK_PROMPTS
from llm.export.saving import (
    LOGIT_TOLERANCE,
    LogitDifference,
    check_destination,
    check_shard_size,
    checkpoint_dtype,
    checkpoint_size,
    compare_logits,
    quant_as_stored,
    round_weights,
)
from llm.loading import load_model_config, model_folder
from tuning.atomic import atomic_folder
from tuning.data.conversation import single_turn
from tuning.errors import ConfigError, ModelError
from tuning.modules.fp32_upcast import fp32_upcast, merge_adapters
from tuning.modules.trained_weights import AdapterWeights
from tuning.run_dir import RunDir
from tuning.training.samples import IMAGE_TOKEN_INDEX
from vlm.export.layouts import MergedParts, resize_vocabulary, save_native, save_official, save_parts, to_native_llava
from vlm.export.processor import check_processor_ids, make_processor, tokenizer_with_image
from vlm.finetuned import check_finetuned, finetuned_task, load_finetuned
from vlm.model import VisionLanguageModel
from vlm.projector import Projector
from vlm.recipe import load_vlm_template
from vlm.settings import ImageTask
from vlm.towers.registry import tower_facts
from vlm.towers.tower import Tower, TowerKind

LlavaLayout = Literal["hf", "official", "parts"]
SUPPORTED_TOWERS: dict[LlavaLayout, tuple[TowerKind, ...]] = {"hf": ("clip", "siglip"), "official": ("clip",)}
IMAGE_PROMPT = single_turn("<image>\nWhat is in this picture?")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The layout and dtype that were written, and the differences of the logits.

    Args:
        exported: base with adapters against merged, both in fp32.
        rounded: merged in fp32 against rounded to `dtype`.
    """

    layout: LlavaLayout
    dtype: str
    exported: LogitDifference
    rounded: LogitDifference


def choose_layout(task: ImageTask, requested: LlavaLayout | None) -> LlavaLayout:
    """Check the requested layout; without one, choose hf if transformers' LLaVA supports the tower, else parts.

    Raises:
        ConfigError: the layout does not support this tower or language model.
    """
    kind = tower_facts(task.tower).kind
    if requested is None:
        return "hf" if kind in SUPPORTED_TOWERS["hf"] else "parts"
    supported = SUPPORTED_TOWERS.get(requested)
    if supported and kind not in supported:
        raise ConfigError(
            f"--layout {requested}: supports {' and '.join(supported)} towers, not {task.tower}; use --layout parts."
        )
    if requested == "official" and (model := load_model_config(task.versioned_model).model_type) != "llama":
        raise ConfigError(f"--layout official: supports llama models, not {model}; use --layout hf or parts.")
    return requested


def export(run: RunDir, task: ImageTask, destination: Path, requested: LlavaLayout | None, shard: str) -> ExportReport:
    """Merge the adapters of a run and write the model.

    Args:
        requested: the layout, or None for the default of the tower.
        shard: maximum size of a weights file, such as `2GB`.

    Raises:
        ConfigError: the layout does not support the tower, the destination exists, or the shard size is invalid.
        ModelError: the run has not finished, or the exported logits differ.
        DeviceError: the destination cannot be written.
    """
    check_shard_size(shard)
    check_finetuned(run, task)
    finetuned = finetuned_task(run, task)
    layout = choose_layout(finetuned, requested)
    base = model_folder(finetuned.versioned_model)
    dtype = checkpoint_dtype(base)
    check_destination(destination, checkpoint_size(base))
    template = load_vlm_template(finetuned)
    stored = {"quant": quant_as_stored(base), "run": task.run.model_copy(update={"device": "cpu"})}
    merged, exported, rounded, logits = _merge(run, task.model_copy(update=stored), template, layout, dtype)
    with atomic_folder(destination) as unfinished:
        if layout == "official":
            save_official(merged, template, task.tower, unfinished, dtype, shard)
        elif layout == "parts":
            save_parts(merged, template, unfinished, destination, dtype, shard)
        else:
            pixels = merged.tower.preprocess(example_picture())
            model, tokenizer = _to_checked_native(merged, template, pixels, logits)
            save_native(model, merged.tower, tokenizer, unfinished, dtype, shard)
            del model, merged
            gc.collect()  # memory may not be enough for two models
            _check_logits(logits, _reload_logits(unfinished, dtype, template, pixels))
    return ExportReport(layout, str(dtype).removeprefix("torch."), exported, rounded)


def _merge(
    run: RunDir, task: ImageTask, template: ChatTemplate, layout: LlavaLayout, dtype: torch.dtype
) -> tuple[MergedParts, LogitDifference, LogitDifference, Tensor]:
    """Merge a run's adapters.

    Returns:
        The parts, the difference of merging, the difference of rounding, and float32[N, K] logits of the rounded model.

    Raises:
        ModelError: the merged logits differ.
    """
    _, parts = load_finetuned(run, task, template)
    language, projector, tower = parts.language.network, parts.projector, parts.tower

    def logits(merged: bool = False) -> Tensor:
        with fp32_upcast(language, merged):
            return spliced_logits(language, projector, tower, template)

    adapted = logits()
    if isinstance(parts.tower_weights, AdapterWeights):
        tower.network = parts.tower_weights.network.merge_and_unload()
    exported = _check_logits(adapted, merged := logits(merged=True))
    language = merge_adapters(language, dtype)
    if layout == "hf" or parts.trains_tower:
        round_weights(tower, dtype)
    if layout != "parts":  # parts keep the projector in fp32
        round_weights(projector, dtype)
    rounded = logits()
    model = MergedParts(language.eval(), projector, tower.eval(), parts.trains_tower)
    return model, exported, compare_logits(merged, rounded), rounded


def _to_checked_native(
    merged: MergedParts, template: ChatTemplate, pixels: Tensor, expected: Tensor
) -> tuple[LlavaForConditionalGeneration, PreTrainedTokenizerBase]:
    """transformers' LLaVA and its tokenizer, with token ids checked, and logits against `expected`, float32[N, K].

    Raises:
        ModelError: they differ.
    """
    tokenizer, image_id = tokenizer_with_image(template)
    processor = make_processor(merged.tower, tokenizer)
    for prompt, pictures in ((IMAGE_PROMPT, [example_picture()]), (single_turn(CHECK_PROMPTS[0]), [])):
        check_processor_ids(processor, template, prompt, pictures, image_id)
    resize_vocabulary(merged.language, len(tokenizer))
    model = to_native_llava(merged, image_id)
    _check_logits(expected, native_logits(model, template, pixels))
    return model, tokenizer


def _reload_logits(folder: Path, dtype: torch.dtype, template: ChatTemplate, pixels: Tensor) -> Tensor:
    """float32[N, K] of a folder that transformers loads.

    Raises:
        ModelError: weights are missing or unexpected.
    """
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if odd := sorted((*info["missing_keys"], *info["unexpected_keys"])):
        raise ModelError(f"--layout hf: transformers cannot load the written model ({odd[0]}); use --layout parts.")
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.float()  # the tower casts its pixels to the dtype of its weights
    return native_logits(model.eval(), template, pixels)


def example_picture() -> Image.Image:
    """A picture with different values everywhere, twice as wide as high."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    return Image.merge("RGB", (across, down, Image.radial_gradient("L"))).resize((96, 48))


@torch.no_grad()
def spliced_logits(language: nn.Module, projector: Projector, tower: Tower, template: ChatTemplate) -> Tensor:
    """float32[N, K] of our own model; its features are not rounded to 16 bits."""
    features = tower(tower.preprocess(example_picture())[None])
    module = VisionLanguageModel(language, projector, lambda pictures: features[list(pictures)], torch.float32).eval()
    logits: list[Tensor] = []
    for ids, pictures in _prompts(template):
        output = language(inputs_embeds=module.embed(ids, pictures), use_cache=False)
        logits.append(output.logits[0].float())
    return torch.cat(logits)


@torch.no_grad()
def native_logits(model: LlavaForConditionalGeneration, template: ChatTemplate, pixels: Tensor) -> Tensor:
    """float32[N, K] of transformers' LLaVA."""
    logits: list[Tensor] = []
    for ids, pictures in _prompts(template):
        marked = ids.masked_fill(ids == IMAGE_TOKEN_INDEX, model.config.image_token_index)
        pixel_values = pixels[None] if pictures else None
        with fp32_upcast(model):
            logits.append(model(input_ids=marked, pixel_values=pixel_values, use_cache=False).logits[0].float())
    return torch.cat(logits)


def _prompts(template: ChatTemplate) -> list[tuple[Tensor, list[int]]]:
    """int64[1, T] token ids and picture numbers of the prompts that logits are compared on."""
    prompts = [(IMAGE_PROMPT, [0]), *((single_turn(text), []) for text in CHECK_PROMPTS)]
    return [(torch.tensor([template.prompt(conversation)]), pictures) for conversation, pictures in prompts]


def _check_logits(expected: Tensor, written: Tensor) -> LogitDifference:
    """Compare logits; `written` may have more tokens than `expected`."""
    difference = compare_logits(expected, written[:, : expected.shape[1]])
    if not difference.difference <= LOGIT_TOLERANCE:
        raise ModelError(f"the exported logits differ from the run's ({difference}); nothing is written, keep the run.")
    return difference
