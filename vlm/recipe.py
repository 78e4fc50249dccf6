"""The image path, told in the order it happens."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from llm.chat_template.encoding import ChatTemplate
from llm.dataset import EncodedData, encode_data, encode_row
from llm.evaluation import (
    compare_answers,
    first_of_each_group,
    load_probes,
    make_answer_function,
    mean_loss,
    sample_rows,
)
from llm.finetuned import check_base, log_trainable
from llm.forecast import Forecast, forecast_run
from llm.loading import load_model, load_template
from llm.mixture import distinct_rows, log_system, make_batches, rehearsal_rows, write_data_facts
from llm.model import check_packing_isolation
from llm.prompts import read_prompts
from tuning.errors import ConfigError
from tuning.evaluation.compare import Comparison
from tuning.evaluation.probes import Probe, read_probes
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from tuning.training.checkpoint import TrainableModule
from tuning.training.engine import EvaluationHooks, StepReport, fit
from tuning.training.samples import EncodedSample
from vlm.checkpoints.initialize import check_initial_parts
from vlm.features import PictureTable
from vlm.loading import (
    VlmParts,
    build_vlm,
    check_finetuned,
    language_width,
    load_adapters_and_projector,
    load_checkpoint,
    load_finetuned,
    make_embed_function,
    make_features,
    make_initial_parts,
    save_checkpoint,
    save_finetuned,
)
from vlm.settings import ImageTask
from vlm.sources import read_image_conversations
from vlm.towers.clip_siglip import count_trainable
from vlm.towers.registry import TowerFacts, tower_facts

log = logging.getLogger("twinlens")
COMPARE_BATCH = 192  # probes answered at once: on a CPU each word costs unpacking all 4-bit weights, however many ask


def train(
    task: ImageTask, run_dir: RunDir, *, resume: bool = False, deepspeed: dict[str, Any] | None = None
) -> list[StepReport]:
    """Everything that can be wrong with data, pictures and probes, then model, eyes and features, and the loop.

    Raises:
        KitError: something the user must change; nothing was trained, or a checkpoint was kept.
    """
    template = load_vlm_template(task)
    check_base(task)
    log_system(task, template)
    table = PictureTable()
    data, given = encode_rows(task, template, table)
    card = write_data_facts(task, data, run_dir)
    probes = [probe for file in task.evaluation.probes for probe in read_probes(resolve_path(file), card)]
    read_prompts(task.rehearsal.prompts)

    loaded = load_model(
        task.versioned_model, template, task.quant, task.run.device, full_finetuning=task.full_finetuning
    )
    rehearsed = rehearsal_rows(task, loaded, run_dir, len(given))
    sighted = make_initial_parts(task, loaded, training=True)
    asked = first_of_each_group(probes, task.evaluation.samples)
    with PartialState().main_process_first():
        features = make_features(sighted, add_probe_pictures(table, asked), task.pictures)
    module = build_vlm(sighted, features, loaded.compute_dtype)
    if task.data.pack:
        check_packing_isolation(module, data.samples, loaded.device)
    log_trainable(module, task, f"stage {task.stage}")
    if task.optim.gradient_checkpointing:
        sighted.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    trainee = TrainableModule(
        module,
        save=lambda folder: save_checkpoint(sighted, folder, task),
        load=lambda folder: load_checkpoint(sighted, folder, task),
        save_final=lambda: save_finetuned(sighted, loaded, run_dir, task),
        learning_rates={
            start: rate
            for start, rate in {"projector.": task.rates.projector, "features.": task.rates.tower}.items()
            if rate is not None
        },
    )
    answers = make_answer_function(
        sighted.language,
        template,
        loaded.compute_dtype,
        task.evaluation.max_new_tokens,
        embed=make_embed_function(module, table),
    )
    watch = EvaluationHooks(
        task.evaluation.every,
        lambda step: sample_rows(step, asked, answers(asked)),
        lambda: mean_loss(module, data.validation, template.pad_id, loaded.device),
    )
    rehearsal = [*given, *(encode_row(row, template, task.data) for row in rehearsed)]
    batches = make_batches(task, data, rehearsal, template.pad_id)
    return fit(trainee, batches, task.optim, task.run, run_dir, watch, resume=resume, deepspeed=deepspeed)


def compare(run_dir: RunDir, task: ImageTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask every probe in the state before the first step and in the trained one, and write the report.

    Raises:
        KitError: probes, model or trained parts are missing or do not fit.
    """
    check_finetuned(run_dir, task)
    probes, files, card = load_probes(run_dir, task, probe_files)
    template = load_vlm_template(task)
    table = add_probe_pictures(PictureTable(), probes)

    def said(sighted: VlmParts, compute: torch.dtype) -> list[str]:
        module = build_vlm(sighted, make_features(sighted, table, task.pictures), compute)
        answers = make_answer_function(
            sighted.language, template, compute, task.evaluation.max_new_tokens,
            embed=make_embed_function(module, table), shown=True, batch_size=COMPARE_BATCH,
        )  # fmt: skip
        return answers(probes)

    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    sighted = make_initial_parts(task, loaded)
    before = said(sighted, loaded.compute_dtype)
    if task.full_finetuning or task.whole_tower:
        loaded.release()
        loaded, sighted = load_finetuned(run_dir, task, template)
    else:
        load_adapters_and_projector(sighted, run_dir.adapter)
    return compare_answers(run_dir, task, probes, files, card, before, said(sighted, loaded.compute_dtype))


def load_vlm_template(task: ImageTask) -> ChatTemplate:
    """The chat markup with room for the tower's patches, all parts checked to fit.

    Raises:
        KitError: as `check_tower`.
    """
    return load_template(task.versioned_model, task.system, check_tower(task).patches, task.template)


def check_tower(task: ImageTask) -> TowerFacts:
    """Make sure that tower, start and language model fit each other, from their files alone.

    Raises:
        KitError: they do not.
    """
    facts = tower_facts(task.tower)
    for key, asked in (("tower_lora", task.tower_lora is not None), ("whole_tower", task.whole_tower)):
        if asked and not facts.trainable:
            raise ConfigError(f"{key}: {task.tower} cannot be trained; take a CLIP or SigLIP tower, or leave it out.")
    if task.start is not None:
        lora = task.lora if task.stage == "tune" else None
        check_initial_parts(task.start, facts.width, language_width(task.versioned_model), lora, task.tower_lora)
    return facts


def encode_rows(
    task: ImageTask, template: ChatTemplate, table: PictureTable
) -> tuple[EncodedData, list[EncodedSample]]:
    """The data and the rows of rehearsal.files in tokens, their pictures entered into the table."""

    def number(image: str) -> int:
        return table.number(Path(image))

    rows = read_image_conversations(task.data.files, task.pictures.folder)
    data = encode_data(rows, task.data, template, task.run.seed, number)
    given = distinct_rows(read_image_conversations(task.rehearsal.files, None))
    return data, [encode_row(row, template, task.data, number) for row in given]


def add_probe_pictures(table: PictureTable, probes: Sequence[Probe]) -> PictureTable:
    """The table with the pictures of probes in it."""
    for probe in probes:
        if probe.image is not None:
            table.number(probe.image)
    return table


def forecast(task: ImageTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and arithmetic from the data, the tokenizer and the models' configurations alone."""
    template = load_vlm_template(task)
    data, rehearsal = encode_rows(task, template, PictureTable())
    width, hidden = tower_facts(task.tower).width, language_width(task.versioned_model)
    projector = (width + 1) * hidden + (hidden + 1) * hidden
    tower = count_trainable(task.tower, task.tower_lora) if task.tower_lora or task.whole_tower else 0
    return forecast_run(
        task, data, rehearsal, template.pad_id,
        frozen=task.stage == "align", others=projector + tower, processes=processes,
    )  # fmt: skip
