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
from llm.checkpoints.embedded import NAME as EMBEDDED
from llm.export.saving import folder_anew
from llm.finetuned import Network
from llm.generation import Embed
from llm.loading import LoadedModel, load_model, read_config
from tuning.data.conversation import Conversation
from tuning.errors import ModelError
from tuning.modules.full_finetuning import load_full_weights, save_full_weights, enable_full_finetuning
from tuning.modules.lora import attach_adapter, load_adapter_weights, save_adapter
from tuning.run_dir import RunDir
from vlm.checkpoints.initialize import check_start, load_start, read_start
from vlm.export.layouts import write_tower
from vlm.features import FeatureSource, KeptFeatures, LiveFeatures, PictureTable, keep_features
from vlm.model import VisionLanguageModel
from vlm.projector import FILE, Projector, fresh_projector, restore_projector, save_projector
from vlm.settings import ImageTask, Pictures
from vlm.towers.registry import load_tower, tower_facts
from vlm.towers.tower import TOWER, Tower

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class Sighted:
    """The parts of a model that sees.

    Args:
        language: with its adapter where it has one, else the language model itself.
        tower_adapter: the tower's network with an adapter, where one is trained.
        whole_tower: whether every weight of the tower is trained.
    """

    language: Network
    tower: Tower
    tower_adapter: PeftModel | None
    whole_tower: bool
    projector: Projector

    @property
    def tower_trained(self) -> bool:
        """Whether features change in training."""
        return self.whole_tower or self.tower_adapter is not None


def language_width(name: str) -> int:
    """D of a language model, from its configuration."""
    return int(read_config(name).get_text_config().hidden_size)


def check_trained(run: RunDir, task: ImageTask) -> None:
    """Look at what a run learned before anything loads.

    Raises:
        ModelError: it has not finished, or its projector does not fit its models.
    """
    if not (run.adapter / FILE).exists():
        raise ModelError(f"{run.path}: nothing trained in it yet ({FILE} is missing); train it to its end.")
    if task.whole:
        trained.check_trained(run, task)
    task = as_trained(run, task)
    check_start(str(run.adapter / FILE), tower_facts(task.tower).width, language_width(task.versioned_model))


def as_trained(run: RunDir, task: ImageTask) -> ImageTask:
    """The task that begins as a run ended, but for its adapters and its projector: models that were trained as wholes
    are the run's own."""
    changes: dict[str, object] = {"start": None}  # what it started from is in what it learned
    if task.whole:
        changes |= {"model": str(run.model), "revision": None}
    if task.whole_tower:
        changes["tower"] = str(run.adapter / TOWER)
    return task.model_copy(update=changes)


def begin(task: ImageTask, loaded: LoadedModel, *, training: bool = False) -> Sighted:
    """The state before the first step: fresh adapters and projector, and what the task starts from put into them.

    Tower and projector stay in 16 or 32 bits: only the language model's linears are ever quantised.

    Args:
        training: whether it will be trained, and not asked alone.

    Raises:
        KitError: tower or start are missing or do not fit.
    """
    tower = load_tower(task.tower, loaded.device, tower_dtype(task, loaded))
    projector = fresh_projector(tower.width, language_width(task.versioned_model), task.run.seed).to(loaded.device)
    language: Network = loaded.model
    tower_adapter = None
    if task.stage == "tune" and (training or not task.whole):
        language = trained.begin(loaded, task)
    if task.whole_tower and training:
        enable_full_finetuning(tower.network, tower.idle)
    if task.tower_lora is not None:
        assert isinstance(tower.network, PreTrainedModel)
        tower_adapter = attach_adapter(tower.network, task.tower_lora, task.run.seed, None, tower.idle)
    if task.start is not None:
        adapted = language if isinstance(language, PeftModel) else None
        load_start(read_start(task.start), projector, adapted, tower_adapter)
    log.info(
        "tower: %s, %d patches of %d; projector to %d", task.tower, tower.patches, tower.width,
        projector.linear_2.out_features,
    )  # fmt: skip
    return Sighted(language, tower, tower_adapter, task.whole_tower, projector)


def open_trained(run: RunDir, task: ImageTask, template: ChatTemplate) -> tuple[LoadedModel, Sighted]:
    """A run's models as training left them, to be asked."""
    task = as_trained(run, task)
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    sighted = begin(task, loaded)
    restore_trained(sighted, run.adapter)
    return loaded, sighted


def tower_dtype(task: ImageTask, loaded: LoadedModel) -> torch.dtype:
    """The type of a tower: that of the language model's products on a GPU, unless it is the embedded one or trained.

    On a CPU a tower sees each picture once and can afford fp32; the features of the embedded one are 10 % off in bf16.
    """
    exact = loaded.device.type == "cpu" or task.tower == EMBEDDED or task.whole_tower
    return torch.float32 if exact else loaded.compute


def features_for(sighted: Sighted, table: PictureTable, pictures: Pictures) -> KeptFeatures | LiveFeatures:
    """Features of all pictures of a run: kept where the tower is frozen and they fit, and the tower is let go."""
    if not sighted.tower_trained and len(table):
        kept = keep_features(sighted.tower, table, pictures.views, pictures.cache_gib)
        if kept is not None:
            sighted.tower.to("cpu")
            return kept
    elif sighted.tower_trained:
        log.info("features: the tower is trained, so it runs at every step and nothing of it is kept")
    return LiveFeatures(sighted.tower, table, pictures.views)


def see_with(sighted: Sighted, features: FeatureSource, compute: torch.dtype) -> VisionLanguageModel:
    """The whole as one module, in eval mode."""
    return VisionLanguageModel(sighted.language, sighted.projector, features, compute).eval()


def embedding(module: VisionLanguageModel, table: PictureTable) -> Embed:
    """How `answer_batched` and the chat give conversations with pictures to the language model."""

    def embed(ids: torch.Tensor, conversations: Sequence[Conversation]) -> torch.Tensor:
        numbers = [table.number(Path(image)) for conversation in conversations for image in conversation.images]
        return module.embed(ids, numbers)

    return embed


def save_trained(sighted: Sighted, folder: Path, task: ImageTask) -> None:
    """Adapters in PEFT's layout, and `projector.safetensors`."""
    if isinstance(sighted.language, PeftModel):
        save_adapter(sighted.language, folder, task.model, task.revision)
    if sighted.tower_adapter is not None:
        save_adapter(sighted.tower_adapter, folder / TOWER, sighted.tower.name)
    save_projector(sighted.projector, folder)


def restore_trained(sighted: Sighted, folder: Path) -> None:
    """Put back what `save_trained` wrote.

    Raises:
        ModelError: something of it is missing.
    """
    try:
        restore_projector(sighted.projector, folder)
        if isinstance(sighted.language, PeftModel):
            load_adapter_weights(sighted.language, folder)
        if sighted.tower_adapter is not None:
            load_adapter_weights(sighted.tower_adapter, folder / TOWER)
    except OSError as error:
        raise ModelError(f"{folder}: not the trained parts of this task ({error}); train it to its end.") from error


def save_progress(sighted: Sighted, folder: Path, task: ImageTask) -> None:
    """Into a checkpoint, all that is trained, in fp32."""
    save_trained(sighted, folder, task)
    if task.whole:
        save_full_weights(sighted.language, folder)
    if task.whole_tower:
        save_full_weights(sighted.tower.network, folder / TOWER)


def restore_progress(sighted: Sighted, folder: Path, task: ImageTask) -> None:
    """Put back what `save_progress` wrote."""
    restore_trained(sighted, folder)
    if task.whole:
        load_full_weights(sighted.language, folder)
    if task.whole_tower:
        load_full_weights(sighted.tower.network, folder / TOWER)


def write_trained(sighted: Sighted, loaded: LoadedModel, run: RunDir, task: ImageTask) -> None:
    """What a run is for: adapters and projector, and the models that were trained as wholes, each to load as one."""
    if task.whole:
        trained.write_trained(sighted.language, loaded, run, task)
    if task.whole_tower:
        with folder_anew(run.adapter / TOWER) as unfinished:
            write_tower(sighted.tower, unfinished, torch.float32, "2GB")
    save_trained(sighted, run.adapter, task)
