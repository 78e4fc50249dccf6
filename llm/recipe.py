"""The text path, told in the order it happens."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.dataset import encode_data, encode_row
from llm.evaluation import (
    compare_answers,
    first_of_each_group,
    load_probes,
    make_answer_function,
    mean_loss,
    sample_rows,
)
from llm.finetuned import (
    check_base,
    check_finetuned,
    load_checkpoint,
    load_finetuned,
    log_trainable,
    make_trainable,
    save_checkpoint,
    save_finetuned,
)
from llm.forecast import Forecast, forecast_run
from llm.loading import load_model, load_template
from llm.mixture import distinct_rows, log_system, make_batches, rehearsal_rows, write_data_facts
from llm.model import LanguageModel, check_packing_isolation
from llm.prompts import read_prompts
from llm.settings import TextTask
from llm.sources import read_conversations
from tuning.evaluation.compare import Comparison
from tuning.evaluation.probes import read_probes
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from tuning.training.checkpoint import TrainableModule
from tuning.training.engine import EvaluationHooks, StepReport, fit

log = logging.getLogger("twinlens")


def train(
    task: TextTask, run_dir: RunDir, *, resume: bool = False, deepspeed: dict[str, Any] | None = None
) -> list[StepReport]:
    """Everything that can be wrong with data and probes, then the model, its rehearsal, the adapter, and the loop.

    Raises:
        KitError: something the user must change; nothing was trained, or a checkpoint was kept.
    """
    template = load_template(task.versioned_model, task.system, named=task.template)
    check_base(task)
    log_system(task, template)
    data = encode_data(read_conversations(task.data.files), task.data, template, task.run.seed)
    card = write_data_facts(task, data, run_dir)
    probes = [probe for file in task.evaluation.probes for probe in read_probes(resolve_path(file), card)]
    read_prompts(task.rehearsal.prompts)
    given = distinct_rows(read_conversations(task.rehearsal.files))

    loaded = load_model(
        task.versioned_model, template, task.quant, task.run.device, full_finetuning=task.full_finetuning
    )
    rehearsed = [*given, *rehearsal_rows(task, loaded, run_dir, len(given))]
    if task.data.pack and task.data.packing == "isolated":
        check_packing_isolation(LanguageModel(loaded.model, loaded.compute_dtype).eval(), data.samples, loaded.device)

    network = make_trainable(loaded, task)
    log_trainable(network, task, f"adapter of rank {task.lora.rank}" if task.lora else "every weight")
    if task.optim.gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = LanguageModel(network, loaded.compute_dtype)
    trainee = TrainableModule(
        module,
        save=lambda folder: save_checkpoint(network, folder, task),
        load=lambda folder: load_checkpoint(network, folder),
        save_final=lambda: save_finetuned(network, loaded, run_dir, task),
    )
    asked = first_of_each_group(probes, task.evaluation.samples)
    answers = make_answer_function(network, template, loaded.compute_dtype, task.evaluation.max_new_tokens)
    watch = EvaluationHooks(
        task.evaluation.every,
        lambda step: sample_rows(step, asked, answers(asked)),
        lambda: mean_loss(module, data.validation, template.pad_id, loaded.device),
    )
    rehearsal = [encode_row(row, template, task.data) for row in rehearsed]
    batches = make_batches(task, data, rehearsal, template.pad_id)
    return fit(trainee, batches, task.optim, task.run, run_dir, watch, resume=resume, deepspeed=deepspeed)


def compare(run_dir: RunDir, task: TextTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask every probe before and after, and write the report: an adapter is put on between, a whole model loaded.

    Raises:
        KitError: probes, model or what was trained are missing or do not fit.
    """
    check_finetuned(run_dir, task)
    probes, files, card = load_probes(run_dir, task, probe_files)
    template = load_template(task.versioned_model, task.system, named=task.template)
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    before = make_answer_function(
        loaded.model, template, loaded.compute_dtype, task.evaluation.max_new_tokens, shown=True
    )(probes)
    network = load_finetuned(loaded, run_dir, task)
    after = make_answer_function(network, template, loaded.compute_dtype, task.evaluation.max_new_tokens, shown=True)(
        probes
    )
    return compare_answers(run_dir, task, probes, files, card, before, after)


def forecast(task: TextTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and arithmetic from the data, the tokenizer and the model's configuration alone."""
    template = load_template(task.versioned_model, task.system, named=task.template)
    data = encode_data(read_conversations(task.data.files), task.data, template, task.run.seed)
    given = distinct_rows(read_conversations(task.rehearsal.files))
    rehearsal = [encode_row(row, template, task.data) for row in given]
    return forecast_run(task, data, rehearsal, template.pad_id, processes=processes)
