"""Text fine-tuning: train, compare, forecast."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.chat_template.encoding import ChatTemplate
from llm.data_files import distinct_rows, persona_card, read_conversations, read_prompts
from llm.dataset import EncodedData, TrainingInputs, encode_data, encode_row, make_batches, write_data_facts
from llm.evaluation import (
    compare_answers,
    first_of_each_group,
    load_probes,
    make_answer_function,
    mean_loss,
    read_probe_files,
    sample_rows,
)
from llm.finetuned import finetuning_of, log_trainable
from llm.forecast import Forecast, forecast_run
from llm.loading import load_model, load_template, log_system
from llm.model import LanguageModel, check_packing_isolation
from llm.rehearsal import rehearsal_rows
from llm.settings import TextTask
from tuning.evaluation.compare import Comparison
from tuning.run_dir import RunDir
from tuning.training.checkpoint import TrainableModule
from tuning.training.engine import EvaluationHooks, StepReport, fit
from tuning.training.samples import EncodedSample


def read_inputs(task: TextTask) -> TrainingInputs:
    """Read the chat template, the data and the probes; no weights load.

    Raises:
        KitError: something that the user must change.
    """
    finetuning_of(task).check_base()
    template = load_template(task.versioned_model, task.system, template_name=task.template)
    log_system(template)
    data, rehearsal = encode_files(task, template)
    card = persona_card(task.data.files)
    probes = first_of_each_group(read_probe_files(task.evaluation.probes, card), task.evaluation.samples)
    read_prompts(task.rehearsal.prompts)  # checked before the model loads
    return TrainingInputs(template, data, rehearsal, card, probes)


def train(
    task: TextTask,
    inputs: TrainingInputs,
    run_dir: RunDir,
    *,
    resume: bool = False,
    deepspeed: dict[str, Any] | None = None,
) -> list[StepReport]:
    """Load the model, generate rehearsal rows, train.

    Raises:
        KitError: something that the user must change; nothing was trained, or a checkpoint was saved.
    """
    template, data, probes = inputs.template, inputs.data, inputs.probes
    finetuning = finetuning_of(task)
    loaded = load_model(
        task.versioned_model, template, task.quant, task.run.device, full_finetuning=task.full_finetuning
    )
    generated = rehearsal_rows(loaded, task.rehearsal, task.optim, task.data.pack, task.run.seed)
    rehearsal = [*inputs.rehearsal, *(encode_row(row, template, task.data) for row in generated)]
    write_data_facts(run_dir, task.data, inputs, generated=generated, ratio=task.rehearsal.ratio)
    if task.data.pack and task.data.packing == "isolated":
        check_packing_isolation(LanguageModel(loaded.model, loaded.compute_dtype).eval(), data.samples, loaded.device)

    weights = finetuning.make_trainable(loaded.model)
    log_trainable(weights.network, task, f"adapter of rank {task.lora.rank}" if task.lora else "full fine-tuning")
    if task.optim.gradient_checkpointing:
        weights.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = LanguageModel(weights.network, loaded.compute_dtype)
    trainable = TrainableModule(
        module,
        save=weights.save,
        load=weights.load,
        save_final=lambda: finetuning.save_finetuned(weights, loaded, run_dir),
    )
    answer = make_answer_function(weights.network, template, loaded.compute_dtype, task.evaluation.max_new_tokens)
    hooks = EvaluationHooks(
        task.evaluation.every,
        lambda step: sample_rows(step, probes, answer(probes)),
        lambda: mean_loss(module, data.validation, template.pad_id, loaded.device),
    )
    batches = make_batches(
        data, rehearsal, task.data, task.optim,
        ratio=task.rehearsal.ratio, pad_id=template.pad_id, seed=task.run.seed,
    )  # fmt: skip
    return fit(trainable, batches, task.optim, task.run, run_dir, hooks, resume=resume, deepspeed=deepspeed)


def compare(run_dir: RunDir, task: TextTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask the base model and the fine-tuned model every probe, and write the report.

    Raises:
        KitError: probes, base model or the result of training are missing or do not fit.
    """
    finetuning = finetuning_of(task)
    finetuning.check_finetuned(run_dir)
    probes, files, card = load_probes(run_dir, probe_files or task.evaluation.probes)
    template = load_template(task.versioned_model, task.system, template_name=task.template)
    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)

    def answers(network: Any) -> list[str]:
        tokens = task.evaluation.max_new_tokens
        return make_answer_function(network, template, loaded.compute_dtype, tokens, shown=True)(probes)

    before = answers(loaded.model)
    after = answers(finetuning.load_finetuned(loaded, run_dir))
    return compare_answers(run_dir, task.run.seed, probes, files, card, before, after)


def forecast(task: TextTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and FLOPs from the data, the tokenizer and the model configuration; no weights load."""
    template = load_template(task.versioned_model, task.system, template_name=task.template)
    data, rehearsal = encode_files(task, template)
    return forecast_run(task, data, rehearsal, template.pad_id, processes=processes)


def encode_files(task: TextTask, template: ChatTemplate) -> tuple[EncodedData, list[EncodedSample]]:
    """The training data and the rows of rehearsal.files in tokens."""
    data = encode_data(read_conversations(task.data.files), task.data, template, task.run.seed)
    from_files = distinct_rows(read_conversations(task.rehearsal.files))
    return data, [encode_row(row, template, task.data) for row in from_files]
