"""Train a task with XTuner 0.2.0; the result is an ordinary run folder."""

import gc
import logging
import os
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llm.chat_template.encoding import ChatTemplate
from llm.dataset import TrainingInputs, encode_row, make_batches, write_data_facts
from llm.export.full_model import to_published_weights
from llm.loading import load_model
from llm.rehearsal import rehearsal_rows
from tuning.atomic import write_atomically
from tuning.data.formats import SourceRow
from tuning.errors import ConfigError
from tuning.modules.lora import attach_adapter, save_adapter
from tuning.modules.pth import write_pth
from tuning.modules.quantize import choose_compute_dtype, choose_device
from tuning.run_dir import RunDir
from tuning.training.engine import StepReport
from twinlens.tasks import AnyTask
from twinlens.xtuner.checkpoints import read_checkpoint, save_trained_parts, trained_projector
from twinlens.xtuner.engine.environment import RUN_FOLDER
from twinlens.xtuner.engine.inputs import ArrowRows, check_model, write_arrow_rows, write_language_model
from twinlens.xtuner.engine.mmengine_config import INITIAL_PROJECTOR, MODEL, ROWS, TOWER, config_text
from twinlens.xtuner.engine.process import run_trainer
from twinlens.xtuner.export import xtuner_projector_name
from vlm.checkpoints.initialize import check_initial_parts, load_initial_parts
from vlm.checkpoints.reading import read_initial_parts
from vlm.export.layouts import save_tower
from vlm.loading import language_width
from vlm.projector import new_projector
from vlm.recipe import ImageInputs
from vlm.settings import ImageTask
from vlm.towers.registry import load_tower, tower_facts
from vlm.towers.tower import TOWER_FOLDER

log = logging.getLogger("twinlens")


def check_task(task: AnyTask) -> None:
    """Refuse a task that XTuner cannot train, before any file is written.

    Raises:
        KitError: the first setting that XTuner does not support.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--engine xtuner: runs on one device; start without torchrun, or omit --engine.")
    check_model(task.versioned_model)
    if not isinstance(task, ImageTask):
        return
    if (kind := tower_facts(task.tower).kind) != "clip":
        raise ConfigError(f"tower: {task.tower}: XTuner supports CLIP towers, not {kind}; omit --engine.")
    if task.start is not None:
        start = read_initial_parts(task.start)
        if start.language is not None or start.tower is not None:
            raise ConfigError(
                f"start: {task.start}: contains an adapter; with --engine xtuner a run starts from a projector only. "
                "Give a run of stage align."
            )


def differences(task: AnyTask) -> list[str]:
    """A sentence for each setting of the task that XTuner handles differently."""
    image = isinstance(task, ImageTask)
    unlike = {
        "evaluation.every, data.validation: nothing is evaluated during training; run `twinlens compare` after it": (
            task.evaluation.every or task.data.validation
        ),
        "data.pack: image rows are padded, one row in each sequence": task.data.pack and image,
        "data.packing: rows in a sequence see each other; XTuner isolates them only with flash-attn": (
            task.data.pack and not image and task.data.packing == "isolated"
        ),
        "optim.accumulate: each micro-batch has the same weight, also with fewer labels": task.optim.accumulate > 1,
        "run.save_every: no checkpoints; the run cannot be resumed": task.run.save_every,
        "run.trackers: no tracker is used": task.run.trackers,
        "pictures.views: each picture has one view": isinstance(task, ImageTask) and task.pictures.views,
    }
    return [sentence for sentence, applies in unlike.items() if applies]


def train(task: AnyTask, inputs: TrainingInputs, run_dir: RunDir, environment: Path) -> list[StepReport]:
    """Write data and models for XTuner, run its trainer, convert its checkpoint.

    Args:
        environment: the virtual environment with XTuner.

    Raises:
        KitError: something that the user must change; XTuner's log stays in the run folder.
    """
    for sentence in differences(task):
        log.info("XTuner: %s", sentence)
    device = choose_device(task.run.device)
    on_gpu = device.type == "cuda"
    compute = str(choose_compute_dtype(task.quant.compute, device)).removeprefix("torch.")
    folder = run_dir.path / RUN_FOLDER
    folder.mkdir()
    rows = _write_rows(task, inputs, run_dir, folder / ROWS)
    write_language_model(task.versioned_model, folder / MODEL)
    if isinstance(task, ImageTask):
        _write_image_models(task, folder)
    config = folder / "config.py"
    write_atomically(config, config_text(task, folder, rows.iters, compute, on_gpu))
    log.info("XTuner: %d rows in %d steps; the config is %s", len(rows.tokens), rows.steps, config)
    reports = run_trainer(environment, config, run_dir, rows, on_gpu)
    _save_result(task, folder / f"iter_{rows.iters}.pth", run_dir)
    return reports


def _write_rows(task: AnyTask, inputs: TrainingInputs, run_dir: RunDir, folder: Path) -> ArrowRows:
    """Write all rows of the run, rehearsal included, in the order of twinlens's own engine."""
    template = inputs.template
    settings = task.data.model_copy(update={"pack": task.data.pack and not isinstance(task, ImageTask)})
    generated = _generate_rehearsal(task, template, settings.pack)
    rehearsal = [*inputs.rehearsal, *(encode_row(row, template, settings) for row in generated)]
    write_data_facts(run_dir, settings, inputs, generated=generated, ratio=task.rehearsal.ratio)
    batches = make_batches(
        inputs.data, rehearsal, settings, task.optim,
        ratio=task.rehearsal.ratio, pad_id=template.pad_id, seed=task.run.seed,
    )  # fmt: skip
    pictures = inputs.pictures.paths if isinstance(inputs, ImageInputs) else None
    return write_arrow_rows(batches, task.optim, folder, pictures)


def _generate_rehearsal(task: AnyTask, template: ChatTemplate, pack: bool) -> list[SourceRow]:
    """Rehearsal prompts with the base model's answers; its memory is free again when XTuner starts."""
    if not (task.rehearsal.prompts and task.rehearsal.ratio):
        return []
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    rows = rehearsal_rows(loaded, task.rehearsal, task.optim, pack, task.run.seed)
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def _write_image_models(task: ImageTask, folder: Path) -> None:
    """Write the tower, and the initial projector as an XTuner checkpoint."""
    tower = load_tower(task.tower, torch.device("cpu"), torch.float32)
    save_tower(tower, folder / TOWER, torch.float32, "2GB")
    hidden = language_width(task.versioned_model)
    projector = new_projector(tower.width, hidden, task.run.seed)
    if task.start:
        load_initial_parts(check_initial_parts(task.start, tower.width, hidden), projector, None, None)
    weights = {f"projector.{xtuner_projector_name(name)}": value for name, value in projector.state_dict().items()}
    write_pth({"state_dict": weights}, folder / INITIAL_PROJECTOR)


def _save_result(task: AnyTask, checkpoint: Path, run: RunDir) -> None:
    """Write the trained weights into the files that twinlens's own engine writes."""
    parts = read_checkpoint(checkpoint, task)
    if parts.full_language is not None:
        published = to_published_weights(parts.full_language, task.versioned_model, parts.source)
        parts = replace(parts, full_language=published)
    save_trained_parts(parts, task, run.adapter, run.model)
    if isinstance(task, ImageTask) and task.tower_lora is not None:
        tower = load_tower(task.tower, torch.device("cpu"), torch.float32)
        assert isinstance(tower.network, PreTrainedModel)
        adapted = attach_adapter(tower.network, task.tower_lora, task.run.seed, None, tower.unused_modules)
        load_initial_parts(parts, trained_projector(parts), None, adapted)
        save_adapter(adapted, run.adapter / TOWER_FOLDER, tower.name)
