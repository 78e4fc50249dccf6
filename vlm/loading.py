"""Parts of a vision-language model before training: language model, tower, projector.

Shapes: D width of the language model.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from llm.checkpoints.embedded import EMBEDDED
from llm.finetuned import Finetuning, Network, finetuning_of
from llm.generation import EmbedFunction
from llm.loading import LoadedModel, load_model_config
from tuning.data.conversation import Conversation
from tuning.modules.lora import attach_adapter
from tuning.modules.trained_weights import AdapterWeights, FrozenWeights, TrainedWeights, enable_full_finetuning
from vlm.checkpoints.initialize import load_initial_parts
from vlm.checkpoints.reading import read_initial_parts
from vlm.feature_cache import CachedFeatures, cache_features
from vlm.features import FeatureSource, LiveFeatures, PictureTable
from vlm.model import VisionLanguageModel
from vlm.projector import Projector, new_projector
from vlm.settings import ImageTask, Pictures
from vlm.towers.registry import load_tower
from vlm.towers.tower import Tower

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class VlmParts:
    """The parts of a vision-language model.

    Args:
        language: the language model and its trained weights.
        tower: the vision tower; `tower_weights` are the trained weights of its network.
        trains_tower: whether the task trains the tower, so that features cannot be cached.
    """

    language: TrainedWeights[Network]
    tower: Tower
    tower_weights: TrainedWeights[nn.Module]
    trains_tower: bool
    projector: Projector


def language_finetuning(task: ImageTask) -> Finetuning:
    """The fine-tuning method of the language model; it is frozen in stage align."""
    return finetuning_of(task, frozen=task.stage == "align")


def language_width(name: str) -> int:
    """D of a language model, from its configuration."""
    return int(load_model_config(name).get_text_config().hidden_size)


def make_initial_parts(task: ImageTask, loaded: LoadedModel, *, training: bool = False) -> VlmParts:
    """The parts before the first step: new adapters and projector, with the weights of `task.start`.

    Only linear layers of the language model are quantized; tower and projector stay in 16 or 32 bits.

    Args:
        training: whether the parts will be trained.

    Raises:
        KitError: the tower or the start is missing or does not match.
    """
    # On a CPU, a frozen tower runs once for each picture, so fp32 costs little. In bf16, the embedded tower's features
    # have an error of 10 %. Full fine-tuning needs fp32 weights.
    fp32 = loaded.device.type == "cpu" or task.tower == EMBEDDED or task.whole_tower
    tower = load_tower(task.tower, loaded.device, torch.float32 if fp32 else loaded.compute_dtype)
    projector = new_projector(tower.width, language_width(task.versioned_model), task.run.seed).to(loaded.device)
    language: TrainedWeights[Network] = FrozenWeights(loaded.model)
    if training or not task.full_finetuning:
        language = language_finetuning(task).make_trainable(loaded.model)
    tower_weights: TrainedWeights[nn.Module] = FrozenWeights(tower.network)
    if task.whole_tower and training:
        tower_weights = enable_full_finetuning(tower.network, tower.unused_modules)
    if task.tower_lora is not None:
        assert isinstance(tower.network, PreTrainedModel)
        adapted = attach_adapter(tower.network, task.tower_lora, task.run.seed, None, tower.unused_modules)
        tower_weights = AdapterWeights(adapted, tower.name)
    if task.start is not None:
        load_initial_parts(read_initial_parts(task.start), projector, language.network, tower_weights.network)
    log.info(
        "tower: %s, %d patches of width %d; projector to width %d",
        task.tower, tower.patches, tower.width, projector.linear_2.out_features,
    )  # fmt: skip
    return VlmParts(language, tower, tower_weights, task.whole_tower or task.tower_lora is not None, projector)


def make_features(parts: VlmParts, table: PictureTable, pictures: Pictures) -> CachedFeatures | LiveFeatures:
    """Features of a run's pictures: from the cache if the tower is frozen and they fit, else from the tower."""
    if parts.trains_tower:
        log.info("features: not cached, because the tower is trained")
    elif len(table) and (cached := cache_features(parts.tower, table, pictures.views, pictures.cache_gib)):
        parts.tower.to("cpu")
        return cached
    return LiveFeatures(parts.tower, table, pictures.views)


def build_vlm(parts: VlmParts, features: FeatureSource, compute_dtype: torch.dtype) -> VisionLanguageModel:
    """All parts as one module, in eval mode."""
    return VisionLanguageModel(parts.language.network, parts.projector, features, compute_dtype).eval()


def make_embed_function(module: VisionLanguageModel, table: PictureTable) -> EmbedFunction:
    """The function that `generate_answers` and `Chat` use to embed conversations with pictures."""

    def embed(ids: torch.Tensor, conversations: Sequence[Conversation]) -> torch.Tensor:
        numbers = [table.number(image) for conversation in conversations for image in conversation.images]
        return module.embed(ids, numbers)

    return embed
