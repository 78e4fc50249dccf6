"""Trained weights of an image task: save and load checkpoints and the final weights."""

from pathlib import Path

import torch

from llm.chat_template.encoding import ChatTemplate
from llm.loading import LoadedModel, load_model
from tuning.atomic import atomic_folder
from tuning.errors import ModelError
from tuning.modules.trained_weights import FullWeights
from tuning.run_dir import RunDir
from vlm.checkpoints.initialize import check_initial_parts
from vlm.export.layouts import save_tower
from vlm.loading import VlmParts, language_finetuning, language_width, make_initial_parts
from vlm.projector import PROJECTOR_FILE, load_projector, save_projector
from vlm.settings import ImageTask
from vlm.towers.registry import tower_facts
from vlm.towers.tower import TOWER_FOLDER


def save_trained_weights(parts: VlmParts, folder: Path) -> None:
    """Write all trained weights in fp32: PEFT adapters or weights.pt, and projector.safetensors."""
    parts.language.save(folder)
    parts.tower_weights.save(folder / TOWER_FOLDER)
    save_projector(parts.projector, folder)


def load_trained_weights(parts: VlmParts, folder: Path) -> None:
    """Read what `save_trained_weights` wrote.

    Raises:
        ModelError: a file is missing.
    """
    try:
        load_projector(parts.projector, folder)
        parts.language.load(folder)
        parts.tower_weights.load(folder / TOWER_FOLDER)
    except OSError as error:
        raise ModelError(f"{folder}: trained weights are missing ({error}); train the task to its end.") from error


def save_finetuned(parts: VlmParts, loaded: LoadedModel, run: RunDir, task: ImageTask) -> None:
    """Write the result of a run: adapters, projector, and a folder for each fully fine-tuned model."""
    language_finetuning(task).save_finetuned(parts.language, loaded, run)
    if isinstance(parts.tower_weights, FullWeights):
        with atomic_folder(run.adapter / TOWER_FOLDER, replace=True) as unfinished:
            save_tower(parts.tower, unfinished, torch.float32, "2GB")
    else:
        parts.tower_weights.save(run.adapter / TOWER_FOLDER)
    save_projector(parts.projector, run.adapter)


def check_finetuned(run: RunDir, task: ImageTask) -> None:
    """Check the result of a run before models load.

    Raises:
        ModelError: the run has not finished, or its projector does not match its models.
    """
    if not (run.adapter / PROJECTOR_FILE).exists():
        raise ModelError(f"{run.path}: not trained yet ({PROJECTOR_FILE} is missing); finish the training.")
    language_finetuning(task).check_finetuned(run)
    task = finetuned_task(run, task)
    projector = str(run.adapter / PROJECTOR_FILE)
    check_initial_parts(projector, tower_facts(task.tower).width, language_width(task.versioned_model))


def finetuned_task(run: RunDir, task: ImageTask) -> ImageTask:
    """The task without its start, and with the run's own models if they were fully fine-tuned."""
    changes: dict[str, object] = {"start": None}  # the result includes it
    if task.full_finetuning:
        changes |= {"model": str(run.model), "revision": None}
    if task.whole_tower:
        changes["tower"] = str(run.adapter / TOWER_FOLDER)
    return task.model_copy(update=changes)


def load_finetuned(run: RunDir, task: ImageTask, template: ChatTemplate) -> tuple[LoadedModel, VlmParts]:
    """Load the models of a finished run."""
    task = finetuned_task(run, task)
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    parts = make_initial_parts(task, loaded)
    load_trained_weights(parts, run.adapter)
    return loaded, parts
