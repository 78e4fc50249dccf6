"""A task trained by XTuner 0.2.0 itself, and what it learned brought into our run folder."""

import gc
import logging
import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from llm.chat_template.encoding import ChatTemplate
from llm.dataset import TrainingInputs, encode_row, make_batches, write_data_facts
from llm.export.full_model import to_published_weights, write_full_model
from llm.loading import load_model
from llm.rehearsal import rehearsal_rows
from tuning.atomic import atomic_folder, write_atomically
from tuning.data.formats import SourceRow
from tuning.errors import ConfigError
from tuning.modules.lora import attach_adapter, lora_config, save_adapter, target_names, write_adapter
from tuning.modules.quantize import choose_compute_dtype, choose_device
from tuning.run_dir import RunDir
from tuning.training.engine import StepReport
from twinlens.tasks import AnyTask
from twinlens.xtuner.checkpoints import read_checkpoint, write_full_tower
from twinlens.xtuner.engine.environment import RUN_FOLDER, Environment
from twinlens.xtuner.engine.inputs import (
    ArrowRows,
    check_model,
    check_projector_only,
    write_arrow_rows,
    write_clip_tower,
    write_initial_projector,
    write_language_model,
)
from twinlens.xtuner.engine.mmengine_config import InputPaths, config_text
from twinlens.xtuner.engine.process import run_trainer
from vlm.checkpoints.initialize import check_initial_parts, load_initial_parts
from vlm.checkpoints.reading import read_initial_parts
from vlm.loading import language_width
from vlm.projector import new_projector, save_projector
from vlm.recipe import ImageInputs
from vlm.settings import ImageTask
from vlm.towers.registry import load_tower, tower_facts
from vlm.towers.tower import TOWER_FOLDER

log = logging.getLogger("twinlens")


def check_task(task: AnyTask) -> None:
    """Look for what XTuner cannot do, before anything is made.

    Raises:
        KitError: the first such thing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("--engine xtuner: runs on one device here; leave torchrun out, or train without it.")
    check_model(task.versioned_model)
    if not isinstance(task, ImageTask):
        return
    if (kind := tower_facts(task.tower).kind) != "clip":
        raise ConfigError(f"tower: {task.tower}: XTuner's towers are CLIP, and this is {kind}; train without --engine.")
    if task.start is not None:
        check_projector_only(read_initial_parts(task.start))


def differences(task: AnyTask) -> list[str]:
    """What the task asks and XTuner does in another way, a sentence for each."""
    image = isinstance(task, ImageTask)
    found = [
        (
            bool(task.evaluation.every or task.data.validation),
            "nothing is asked or validated while it trains; `twinlens compare` asks before and after",
        ),
        (task.data.pack and image, "data.pack: rows with pictures are padded, one a sequence"),
        (
            task.data.pack and not image and task.data.packing == "isolated",
            "data.packing: rows of one sequence see each other, for it keeps them apart with flash-attn alone",
        ),
        (task.optim.accumulate > 1, "optim.accumulate: micro-batches weigh alike, whatever each has to learn from"),
        (bool(task.run.save_every), "run.save_every: only the end is kept, and a run cannot be resumed"),
        (bool(task.run.trackers), "run.trackers: none of them is written to"),
        (isinstance(task, ImageTask) and bool(task.pictures.views), "pictures.views: each picture is seen as it is"),
    ]
    return [sentence for differs, sentence in found if differs]


def train(task: AnyTask, inputs: TrainingInputs, run_dir: RunDir, environment: Environment) -> list[StepReport]:
    """Data, rehearsal and models written for XTuner, its trainer run on them, its checkpoint read back.

    Raises:
        KitError: something the user must change; the run folder holds XTuner's log where it came that far.
    """
    for sentence in differences(task):
        log.info("XTuner: %s", sentence)
    device = choose_device(task.run.device)
    on_gpu = device.type == "cuda"
    compute = str(choose_compute_dtype(task.quant.compute, device)).removeprefix("torch.")
    folder = run_dir.path / RUN_FOLDER
    folder.mkdir()
    rows = _write_data(task, inputs, run_dir, folder)
    place = _write_models(task, folder, rows.iters)
    config = folder / "config.py"
    write_atomically(config, config_text(task, place, compute, on_gpu))
    log.info("XTuner: %d rows in %d steps; its config is %s", len(rows.tokens), rows.steps, config)
    reports = run_trainer(environment, config, run_dir, rows, on_gpu)
    _save_result(task, folder / f"iter_{rows.iters}.pth", run_dir)
    return reports


def _write_data(task: AnyTask, inputs: TrainingInputs, run_dir: RunDir, folder: Path) -> ArrowRows:
    """Write the rows of the whole run, in the order of our own engine and with rehearsal, for XTuner."""
    template = inputs.template
    settings = task.data.model_copy(update={"pack": task.data.pack and not isinstance(task, ImageTask)})
    generated = _generate_rehearsal(task, template, settings.pack)
    rehearsal = [*inputs.rehearsal, *(encode_row(row, template, settings) for row in generated)]
    write_data_facts(run_dir, settings, inputs, generated=generated, ratio=task.rehearsal.ratio)
    batches = make_batches(
        inputs.data, rehearsal, settings, task.optim,
        ratio=task.rehearsal.ratio, pad_id=template.pad_id, seed=task.run.seed,
    )  # fmt: skip
    pictures = inputs.pictures.paths if isinstance(inputs, ImageInputs) else []
    return write_arrow_rows(batches, task.optim, folder / "rows", template.tokens_per_image, pictures)


def _generate_rehearsal(task: AnyTask, template: ChatTemplate, pack: bool) -> list[SourceRow]:
    """Rehearsal prompts with the base model's answers; the model is freed before XTuner loads it again."""
    if not (task.rehearsal.prompts and task.rehearsal.ratio):
        return []
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    rows = rehearsal_rows(loaded, task.rehearsal, task.optim, pack, task.run.seed)
    del loaded
    gc.collect()
    torch.cuda.empty_cache()
    return rows


def _write_models(task: AnyTask, folder: Path, iters: int) -> InputPaths:
    model = write_language_model(task.versioned_model, folder / "model")
    if not isinstance(task, ImageTask):
        return InputPaths(model, folder / "rows", None, None, iters)
    tower = load_tower(task.tower, torch.device("cpu"), torch.float32)
    hidden = language_width(task.versioned_model)
    projector = new_projector(tower.width, hidden, task.run.seed)
    if task.start:
        load_initial_parts(check_initial_parts(task.start, tower.width, hidden), projector, None, None)
    start = write_initial_projector(projector, folder / "start.pth")
    return InputPaths(model, folder / "rows", write_clip_tower(tower, folder / "tower"), start, iters)


def _save_result(task: AnyTask, checkpoint: Path, run: RunDir) -> None:
    """What XTuner learned, as our own engine would have left it."""
    learned = read_checkpoint(checkpoint, task)
    if isinstance(task, ImageTask):
        tower = load_tower(task.tower, torch.device("cpu"), torch.float32)
        projector = new_projector(tower.width, language_width(task.versioned_model), task.run.seed)
        adapted = None
        if task.tower_lora is not None:
            assert isinstance(tower.network, PreTrainedModel)
            adapted = attach_adapter(tower.network, task.tower_lora, task.run.seed, None, tower.unused_modules)
        load_initial_parts(learned, projector, None, adapted)
        save_projector(projector, run.adapter)
        if adapted is not None:
            save_adapter(adapted, run.adapter / TOWER_FOLDER, tower.name)
        if learned.full_tower is not None:
            write_full_tower(learned, task.tower, run.adapter / TOWER_FOLDER)
    if learned.language is not None and task.lora is not None:
        config = lora_config(task.lora, target_names(learned.language), "CAUSAL_LM")
        write_adapter(learned.language, config, run.adapter, task.model, task.revision)
    if learned.full_language is not None:
        weights = to_published_weights(learned.full_language, task.versioned_model, learned.source)
        with atomic_folder(run.model) as folder:
            write_full_model(weights, task.versioned_model, task.template, folder)
