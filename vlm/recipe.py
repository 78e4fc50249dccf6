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
    asking,
    few_of_each,
    judge_answers,
    mean_loss,
    probes_of_run,
    sample_rows,
)
from llm.finetuned import check_base, say_trained
from llm.forecast import Forecast, forecast_run
from llm.loading import load_model, load_template
from llm.mixture import distinct_rows, mix, rehearsal_rows, say_system, write_data_facts
from llm.model import refuse_leaking_packs
from llm.sources import read_prompts
from tuning.errors import ConfigError
from tuning.evaluation.compare import Comparison
from tuning.evaluation.probes import Probe, read_probes
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from tuning.training.checkpoint import TrainableModule
from tuning.training.engine import StepReport, EvaluationHooks, fit
from tuning.training.samples import EncodedSample
from vlm.checkpoints.initialize import check_start
from vlm.features import PictureTable
from vlm.loading import (
    Sighted,
    begin,
    check_trained,
    embedding,
    features_for,
    language_width,
    open_trained,
    restore_progress,
    restore_trained,
    save_progress,
    see_with,
    write_trained,
)
from vlm.settings import ImageTask
from vlm.sources import read_seen
from vlm.towers.clip_siglip import count_trained
from vlm.towers.registry import TowerFacts, tower_facts

log = logging.getLogger("twinlens")
JUDGED = 192  # probes answered at once: on a CPU each word costs unpacking all 4-bit weights, however many ask


def train(
    task: ImageTask, run_dir: RunDir, *, resume: bool = False, deepspeed: dict[str, Any] | None = None
) -> list[StepReport]:
    """Everything that can be wrong with data, pictures and probes, then model, eyes and features, and the loop.

    Raises:
        KitError: something the user must change; nothing was trained, or a checkpoint was kept.
    """
    template = sighted_template(task)
    check_base(task)
    say_system(task, template)
    table = PictureTable()
    data, given = encode(task, template, table)
    card = write_data_facts(task, data, run_dir)
    probes = [probe for file in task.evaluation.probes for probe in read_probes(resolve_path(file), card)]
    read_prompts(task.rehearsal.prompts)

    loaded = load_model(task.versioned_model, template, task.quant, task.run.device, whole=task.whole)
    rehearsed = rehearsal_rows(task, loaded, run_dir, len(given))
    sighted = begin(task, loaded, training=True)
    asked = few_of_each(probes, task.evaluation.samples)
    with PartialState().main_process_first():
        features = features_for(sighted, enter(table, asked), task.pictures)
    module = see_with(sighted, features, loaded.compute)
    if task.data.pack:
        refuse_leaking_packs(module, data.samples, loaded.device)
    say_trained(module, task, f"stage {task.stage}")
    if task.optim.gradient_checkpointing:
        sighted.language.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    trainee = TrainableModule(
        module,
        save=lambda folder: save_progress(sighted, folder, task),
        load=lambda folder: restore_progress(sighted, folder, task),
        save_final=lambda: write_trained(sighted, loaded, run_dir, task),
        learning_rates={
            start: rate
            for start, rate in {"projector.": task.rates.projector, "features.": task.rates.tower}.items()
            if rate is not None
        },
    )
    answers = asking(
        sighted.language, template, loaded.compute, task.evaluation.max_new_tokens, embed=embedding(module, table)
    )
    watch = EvaluationHooks(
        task.evaluation.every,
        lambda step: sample_rows(step, asked, answers(asked)),
        lambda: mean_loss(module, data.validation, template.pad_id, loaded.device),
    )
    rehearsal = [*given, *(encode_row(row, template, task.data) for row in rehearsed)]
    batches = mix(task, data, rehearsal, template.pad_id)
    return fit(trainee, batches, task.optim, task.run, run_dir, watch, resume=resume, deepspeed=deepspeed)


def judge(run_dir: RunDir, task: ImageTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask every probe in the state before the first step and in the trained one, and write the report.

    Raises:
        KitError: probes, model or trained parts are missing or do not fit.
    """
    check_trained(run_dir, task)
    probes, files, card = probes_of_run(run_dir, task, probe_files)
    template = sighted_template(task)
    table = enter(PictureTable(), probes)

    def said(sighted: Sighted, compute: torch.dtype) -> list[str]:
        module = see_with(sighted, features_for(sighted, table, task.pictures), compute)
        answers = asking(
            sighted.language, template, compute, task.evaluation.max_new_tokens,
            embed=embedding(module, table), shown=True, batch_size=JUDGED,
        )  # fmt: skip
        return answers(probes)

    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    sighted = begin(task, loaded)
    before = said(sighted, loaded.compute)
    if task.whole or task.whole_tower:
        loaded.release()
        loaded, sighted = open_trained(run_dir, task, template)
    else:
        restore_trained(sighted, run_dir.adapter)
    return judge_answers(run_dir, task, probes, files, card, before, said(sighted, loaded.compute))


def sighted_template(task: ImageTask) -> ChatTemplate:
    """The chat markup with room for the tower's patches, all parts checked to fit.

    Raises:
        KitError: as `check_eyes`.
    """
    return load_template(task.versioned_model, task.system, check_eyes(task).patches, task.template)


def check_eyes(task: ImageTask) -> TowerFacts:
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
        check_start(task.start, facts.width, language_width(task.versioned_model), lora, task.tower_lora)
    return facts


def encode(task: ImageTask, template: ChatTemplate, table: PictureTable) -> tuple[EncodedData, list[EncodedSample]]:
    """The data and the rows of rehearsal.files in tokens, their pictures entered into the table."""

    def number(image: str) -> int:
        return table.number(Path(image))

    rows = read_seen(task.data.files, task.pictures.folder)
    data = encode_data(rows, task.data, template, task.run.seed, number)
    given = distinct_rows(read_seen(task.rehearsal.files, None))
    return data, [encode_row(row, template, task.data, number) for row in given]


def enter(table: PictureTable, probes: Sequence[Probe]) -> PictureTable:
    """The table with the pictures of probes in it."""
    for probe in probes:
        if probe.image is not None:
            table.number(probe.image)
    return table


def forecast(task: ImageTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and arithmetic from the data, the tokenizer and the models' configurations alone."""
    template = sighted_template(task)
    data, rehearsal = encode(task, template, PictureTable())
    width, hidden = tower_facts(task.tower).width, language_width(task.versioned_model)
    projector = (width + 1) * hidden + (hidden + 1) * hidden
    tower = count_trained(task.tower, task.tower_lora) if task.tower_lora or task.whole_tower else 0
    return forecast_run(
        task, data, rehearsal, template.pad_id,
        frozen=task.stage == "align", others=projector + tower, processes=processes,
    )  # fmt: skip
