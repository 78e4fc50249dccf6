"""LLaVA export: adapters merged in 16 bits, logits checked, written in a chosen layout.

Shapes: N positions of a few prompts, K tokens in the vocabulary.
"""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

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
from tuning.data.conversation import Conversation, single_turn
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
from vlm.towers.tower import Tower

LlavaLayout = Literal["hf", "official", "parts"]
IMAGE_PROMPT = single_turn("<image>\nWhat is in this picture?")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """The written folder, and differences of the logits.

    Args:
        exported: base with adapters against merged, both in fp32.
        rounded: merged in fp32 against rounded to `dtype`.
    """

    folder: Path
    layout: LlavaLayout
    dtype: str
    exported: LogitDifference
    rounded: LogitDifference


@dataclass(frozen=True, slots=True)
class _ExportJob:
    run: RunDir
    task: ImageTask
    template: ChatTemplate
    layout: LlavaLayout
    base: Path
    destination: Path
    dtype: torch.dtype
    shard: str


@dataclass(frozen=True, slots=True)
class _CheckedModel:
    """A merged model and its logits for a few prompts.

    Args:
        pixels: float32[3, H, W] of the picture in the prompts.
        logits: float32[N, K] of the model as written.
    """

    merged: MergedParts
    pixels: Tensor
    exported: LogitDifference
    rounded: LogitDifference
    logits: Tensor


def choose_layout(task: ImageTask, asked: LlavaLayout | None) -> LlavaLayout:
    """Choose HF-native if transformers' LLaVA has a class for the tower, else parts; check an explicit choice.

    Raises:
        ConfigError: the layout does not support this tower or language model.
    """
    kind = tower_facts(task.tower).kind
    if asked is None:
        return "hf" if kind in ("clip", "siglip") else "parts"
    if asked == "hf" and kind not in ("clip", "siglip"):
        raise ConfigError(
            f"--layout hf: transformers' LLaVA knows CLIP and SigLIP towers, not {task.tower}; take --layout parts."
        )
    if asked == "official" and kind != "clip":
        raise ConfigError(
            f"--layout official: LLaVA's own code knows CLIP towers, not {task.tower}; take --layout hf or parts."
        )
    if asked == "official" and (model := load_model_config(task.versioned_model).model_type) != "llama":
        raise ConfigError(f"--layout official: LLaVA's own code knows Llama, not {model}; take --layout hf or parts.")
    return asked


def export(run: RunDir, task: ImageTask, destination: Path, asked: LlavaLayout | None, shard: str) -> ExportReport:
    """Merge a run and write it.

    Args:
        asked: the layout, or None for the default of the tower.
        shard: largest weights file, such as `2GB`.

    Raises:
        ConfigError: the layout does not support the tower, the destination exists, or the shard size is invalid.
        ModelError: the run has not finished, or the exported logits differ.
        DeviceError: the destination cannot be written.
    """
    check_shard_size(shard)
    check_finetuned(run, task)
    ended = finetuned_task(run, task)
    layout = choose_layout(ended, asked)
    folder = model_folder(ended.versioned_model)
    dtype = checkpoint_dtype(folder)
    check_destination(destination, checkpoint_size(folder))
    job = _ExportJob(run, task, load_vlm_template(ended), layout, folder, destination, dtype, shard)
    exported, rounded = _export_native(job) if layout == "hf" else _export_plain(job)
    return ExportReport(destination, layout, str(dtype).removeprefix("torch."), exported, rounded)


def _merged(job: _ExportJob) -> _CheckedModel:
    """The run's model, merged in the dtype of its base model, with logits checked in fp32.

    Raises:
        ModelError: the merged logits differ.
    """
    stored = {"quant": quant_as_stored(job.base), "run": job.task.run.model_copy(update={"device": "cpu"})}
    _, parts = load_finetuned(job.run, job.task.model_copy(update=stored), job.template)
    language, tower = parts.language.network, parts.tower
    pixels = tower.preprocess(check_picture())

    def logits(folded: bool = False) -> Tensor:
        with fp32_upcast(language, folded):
            return spliced_logits(language, parts.projector, tower, job.template, pixels)

    trained = logits()
    if isinstance(parts.tower_weights, AdapterWeights):
        tower.network = parts.tower_weights.network.merge_and_unload()
    exported = _check_logits(trained, summed := logits(folded=True))
    language = merge_adapters(language, job.dtype)
    for module, written in ((tower, parts.trains_tower), (parts.projector, job.layout != "parts")):
        if written or job.layout == "hf":
            round_weights(module, job.dtype)
    merged = MergedParts(language.eval(), parts.projector, tower.eval(), parts.trains_tower)
    return _CheckedModel(merged, pixels, exported, compare_logits(summed, written := logits()), written)


def _export_plain(job: _ExportJob) -> tuple[LogitDifference, LogitDifference]:
    checked = _merged(job)
    merged = checked.merged
    with atomic_folder(job.destination) as unfinished:
        if job.layout == "official":
            save_official(merged, job.template, job.task.tower, unfinished, job.dtype, job.shard)
        else:
            save_parts(merged, job.template, unfinished, job.destination, job.dtype, job.shard)
    return checked.exported, checked.rounded


def _export_native(job: _ExportJob) -> tuple[LogitDifference, LogitDifference]:
    checked = _merged(job)
    merged, pixels, ours = checked.merged, checked.pixels, checked.logits
    exported, rounded = checked.exported, checked.rounded
    tokenizer, image_id = tokenizer_with_image(job.template)
    processor = make_processor(merged.tower, tokenizer)
    for asked, pictures in ((IMAGE_PROMPT, [check_picture()]), (single_turn(CHECK_PROMPTS[0]), [])):
        check_processor_ids(processor, job.template, asked, pictures, image_id)
    resize_vocabulary(merged.language, len(tokenizer))
    model = to_native_llava(merged, image_id)
    _check_logits(ours, native_logits(model, job.template, pixels)[:, : ours.shape[1]])
    with atomic_folder(job.destination) as unfinished:
        save_native(model, merged.tower, tokenizer, unfinished, job.dtype, job.shard)
        del model, merged, checked
        gc.collect()  # two of them may be more than fits
        read = _reload_logits(unfinished, job.dtype, job.template, pixels)
        _check_logits(ours, read[:, : ours.shape[1]])
    return exported, rounded


def _reload_logits(folder: Path, dtype: torch.dtype, template: ChatTemplate, pixels: Tensor) -> Tensor:
    """float32[N, K] of a folder as transformers loads it.

    Raises:
        ModelError: weights are missing or unexpected.
    """
    loaded: Any = LlavaForConditionalGeneration.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    model, notes = loaded
    if odd := sorted((*notes["missing_keys"], *notes["unexpected_keys"])):
        raise ModelError(f"--layout hf: transformers does not read this model back ({odd[0]}); take --layout parts.")
    for part in (model.model.vision_tower, model.model.multi_modal_projector):
        part.float()  # small, and a tower asks its weights what type its pixels should have
    return native_logits(model.eval(), template, pixels)


def check_picture() -> Image.Image:
    """A test picture with content everywhere, twice as wide as high."""
    across, down = Image.linear_gradient("L").rotate(90), Image.linear_gradient("L")
    return Image.merge("RGB", (across, down, Image.radial_gradient("L"))).resize((96, 48))


@torch.no_grad()
def spliced_logits(
    language: nn.Module, projector: Projector, tower: Tower, template: ChatTemplate, pixels: Tensor
) -> Tensor:
    """float32[N, K] of our own model, with features that are not rounded to 16 bits."""
    features = tower(pixels[None])
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
        seen = pixels[None].expand(len(pictures), -1, -1, -1) if pictures else None
        with fp32_upcast(model):
            logits.append(model(input_ids=marked, pixel_values=seen, use_cache=False).logits[0].float())
    return torch.cat(logits)


def _prompts(template: ChatTemplate) -> list[tuple[Tensor, list[int]]]:
    asked: list[tuple[Conversation, list[int]]] = [
        (IMAGE_PROMPT, [0]),
        *((single_turn(text), []) for text in CHECK_PROMPTS),
    ]
    return [(torch.tensor([template.prompt(conversation)]), pictures) for conversation, pictures in asked]


def _check_logits(was: Tensor, written: Tensor) -> LogitDifference:
    difference = compare_logits(was, written)
    if not difference.difference <= LOGIT_TOLERANCE:
        raise ModelError(
            f"what would be written gives other logits than the run ({difference}), so nothing is; keep the run."
        )
    return difference
