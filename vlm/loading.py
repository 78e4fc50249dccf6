"""A language model with eyes: the state that a run starts from, and what training makes of it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from llm import finetuned as trained
from llm.chat_template.encoding import ChatTemplate
from llm.checkpoints.embedded import EMBEDDED as EMBEDDED
from llm.finetuned import Network
from llm.generation import EmbedFunction
from llm.loading import LoadedModel, load_model, load_model_config
from tuning.atomic import atomic_folder
from tuning.data.conversation import Conversation
from tuning.errors import ModelError
from tuning.modules.full_finetuning import enable_full_finetuning, load_full_weights, save_full_weights
from tuning.modules.lora import attach_adapter, load_adapter_weights, save_adapter
from tuning.run_dir import RunDir
from vlm.checkpoints.initialize import check_initial_parts, load_initial_parts, read_initial_parts
from vlm.export.layouts import save_tower
from vlm.features import CachedFeatures, FeatureSource, LiveFeatures, PictureTable, cache_features
from vlm.model import VisionLanguageModel
from vlm.projector import PROJECTOR_FILE, Projector, load_projector, new_projector, save_projector
from vlm.settings import ImageTask, Pictures
from vlm.towers.registry import load_tower, tower_facts
from vlm.towers.tower import TOWER_FOLDER, Tower

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class VlmParts:
    """The parts of a model that sees.

    Args:
        language: with its adapter where it has one, else the language model itself.
        tower_adapter: the tower's network with an adapter, where one is trained.
        whole_tower: whether every weight of the tower is trained.
    """

    language: Network
    tower: Tower
    tower_adapter: PeftModel | None
    full_tower: bool
    projector: Projector

    @property
    def trains_tower(self) -> bool:
        """Whether features change in training."""
        return self.full_tower or self.tower_adapter is not None


def language_width(name: str) -> int:
    """D of a language model, from its configuration."""
    return int(load_model_config(name).get_text_config().hidden_size)


def check_finetuned(run: RunDir, task: ImageTask) -> None:
    """Look at what a run learned before anything loads.

    Raises:
        ModelError: it has not finished, or its projector does not fit its models.
    """
    if not (run.adapter / PROJECTOR_FILE).exists():
        raise ModelError(f"{run.path}: nothing trained in it yet ({PROJECTOR_FILE} is missing); train it to its end.")
    if task.full_finetuning:
        trained.check_finetuned(run, task)
    task = finetuned_task(run, task)
    check_initial_parts(
        str(run.adapter / PROJECTOR_FILE), tower_facts(task.tower).width, language_width(task.versioned_model)
    )


def finetuned_task(run: RunDir, task: ImageTask) -> ImageTask:
    """The task that begins as a run ended, but for its adapters and its projector: models that were trained as wholes
    are the run's own."""
    changes: dict[str, object] = {"start": None}  # what it started from is in what it learned
    if task.full_finetuning:
        changes |= {"model": str(run.model), "revision": None}
    if task.whole_tower:
        changes["tower"] = str(run.adapter / TOWER_FOLDER)
    return task.model_copy(update=changes)


def make_initial_parts(task: ImageTask, loaded: LoadedModel, *, training: bool = False) -> VlmParts:
    """The state before the first step: fresh adapters and projector, and what the task starts from put into them.

    Tower and projector stay in 16 or 32 bits: only the language model's linears are ever quantized.

    Args:
        training: whether it will be trained, and not asked alone.

    Raises:
        KitError: tower or start are missing or do not fit.
    """
    tower = load_tower(task.tower, loaded.device, tower_dtype(task, loaded))
    projector = new_projector(tower.width, language_width(task.versioned_model), task.run.seed).to(loaded.device)
    language: Network = loaded.model
    tower_adapter = None
    if task.stage == "tune" and (training or not task.full_finetuning):
        language = trained.make_trainable(loaded, task)
    if task.whole_tower and training:
        enable_full_finetuning(tower.network, tower.unused_modules)
    if task.tower_lora is not None:
        assert isinstance(tower.network, PreTrainedModel)
        tower_adapter = attach_adapter(tower.network, task.tower_lora, task.run.seed, None, tower.unused_modules)
    if task.start is not None:
        adapted = language if isinstance(language, PeftModel) else None
        load_initial_parts(read_initial_parts(task.start), projector, adapted, tower_adapter)
    log.info(
        "tower: %s, %d patches of %d; projector to %d", task.tower, tower.patches, tower.width,
        projector.linear_2.out_features,
    )  # fmt: skip
    return VlmParts(language, tower, tower_adapter, task.whole_tower, projector)


def load_finetuned(run: RunDir, task: ImageTask, template: ChatTemplate) -> tuple[LoadedModel, VlmParts]:
    """A run's models as training left them, to be asked."""
    task = finetuned_task(run, task)
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    sighted = make_initial_parts(task, loaded)
    load_adapters_and_projector(sighted, run.adapter)
    return loaded, sighted


def tower_dtype(task: ImageTask, loaded: LoadedModel) -> torch.dtype:
    """The type of a tower: that of the language model's products on a GPU, unless it is the embedded one or trained.

    On a CPU a tower sees each picture once and can afford fp32; the features of the embedded one are 10 % off in bf16.
    """
    exact = loaded.device.type == "cpu" or task.tower == EMBEDDED or task.whole_tower
    return torch.float32 if exact else loaded.compute_dtype


def make_features(sighted: VlmParts, table: PictureTable, pictures: Pictures) -> CachedFeatures | LiveFeatures:
    """Features of all pictures of a run: kept where the tower is frozen and they fit, and the tower is let go."""
    if not sighted.trains_tower and len(table):
        kept = cache_features(sighted.tower, table, pictures.views, pictures.cache_gib)
        if kept is not None:
            sighted.tower.to("cpu")
            return kept
    elif sighted.trains_tower:
        log.info("features: the tower is trained, so it runs at every step and nothing of it is kept")
    return LiveFeatures(sighted.tower, table, pictures.views)


def build_vlm(sighted: VlmParts, features: FeatureSource, compute: torch.dtype) -> VisionLanguageModel:
    """The whole as one module, in eval mode."""
    return VisionLanguageModel(sighted.language, sighted.projector, features, compute).eval()


def make_embed_function(module: VisionLanguageModel, table: PictureTable) -> EmbedFunction:
    """How `generate_answers` and the chat give conversations with pictures to the language model."""

    def embed(ids: torch.Tensor, conversations: Sequence[Conversation]) -> torch.Tensor:
        numbers = [table.number(Path(image)) for conversation in conversations for image in conversation.images]
        return module.embed(ids, numbers)

    return embed


def save_adapters_and_projector(sighted: VlmParts, folder: Path, task: ImageTask) -> None:
    """Adapters in PEFT's layout, and `projector.safetensors`."""
    if isinstance(sighted.language, PeftModel):
        save_adapter(sighted.language, folder, task.model, task.revision)
    if sighted.tower_adapter is not None:
        save_adapter(sighted.tower_adapter, folder / TOWER_FOLDER, sighted.tower.name)
    save_projector(sighted.projector, folder)


def load_adapters_and_projector(sighted: VlmParts, folder: Path) -> None:
    """Put back what `save_checkpoint` wrote.

    Raises:
        ModelError: something of it is missing.
    """
    try:
        load_projector(sighted.projector, folder)
        if isinstance(sighted.language, PeftModel):
            load_adapter_weights(sighted.language, folder)
        if sighted.tower_adapter is not None:
            load_adapter_weights(sighted.tower_adapter, folder / TOWER_FOLDER)
    except OSError as error:
        raise ModelError(f"{folder}: not the trained parts of this task ({error}); train it to its end.") from error


def save_checkpoint(sighted: VlmParts, folder: Path, task: ImageTask) -> None:
    """Into a checkpoint, all that is trained, in fp32."""
    save_adapters_and_projector(sighted, folder, task)
    if task.full_finetuning:
        save_full_weights(sighted.language, folder)
    if task.whole_tower:
        save_full_weights(sighted.tower.network, folder / TOWER_FOLDER)


def load_checkpoint(sighted: VlmParts, folder: Path, task: ImageTask) -> None:
    """Put back what `save_checkpoint` wrote."""
    load_adapters_and_projector(sighted, folder)
    if task.full_finetuning:
        load_full_weights(sighted.language, folder)
    if task.whole_tower:
        load_full_weights(sighted.tower.network, folder / TOWER_FOLDER)


def save_finetuned(sighted: VlmParts, loaded: LoadedModel, run: RunDir, task: ImageTask) -> None:
    """What a run is for: adapters and projector, and the models that were trained as wholes, each to load as one."""
    if task.full_finetuning:
        trained.save_finetuned(sighted.language, loaded, run, task)
    if task.whole_tower:
        with atomic_folder(run.adapter / TOWER_FOLDER, replace=True) as unfinished:
            save_tower(sighted.tower, unfinished, torch.float32, "2GB")
    save_adapters_and_projector(sighted, run.adapter, task)
