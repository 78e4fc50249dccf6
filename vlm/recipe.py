"""Image fine-tuning: train, compare, forecast."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from llm.chat_template.encoding import ChatTemplate
from llm.data_files import distinct_rows, persona_card, read_prompts
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
from llm.finetuned import log_trainable
from llm.forecast import Forecast, forecast_run
from llm.loading import LoadedModel, load_model, load_template, log_system
from llm.model import check_packing_isolation
from llm.rehearsal import rehearsal_rows
from tuning.errors import ConfigError
from tuning.evaluation.compare import Comparison
from tuning.evaluation.probes import Probe
from tuning.run_dir import RunDir
from tuning.training.checkpoint import TrainableModule
from tuning.training.engine import EvaluationHooks, StepReport, fit
from tuning.training.samples import EncodedSample
from vlm.checkpoints.initialize import check_initial_parts
from vlm.data_files import check_pictures, read_image_conversations
from vlm.features import PictureTable
from vlm.finetuned import check_finetuned, load_finetuned, load_trained_weights, save_finetuned, save_trained_weights
from vlm.loading import (
    VlmParts,
    build_vlm,
    language_finetuning,
    language_width,
    make_embed_function,
    make_features,
    make_initial_parts,
)
from vlm.settings import ImageTask
from vlm.towers.clip_siglip import count_trainable
from vlm.towers.registry import tower_facts
from vlm.towers.tower import TowerFacts

COMPARE_BATCH = 192  # probes in one batch: on a CPU each token costs unpacking all 4-bit weights, for any batch size


@dataclass(frozen=True, slots=True)
class ImageInputs(TrainingInputs):
    """What an image run reads and checks before its models load: also the pictures of rows and probes."""

    pictures: PictureTable


def read_inputs(task: ImageTask) -> ImageInputs:
    """Read the chat template, the data, the probes and all pictures; no weights load.

    Raises:
        KitError: something that the user must change.
    """
    template = load_vlm_template(task)
    language_finetuning(task).check_base()
    log_system(template)
    pictures = PictureTable()
    data, rehearsal = encode_files(task, template, pictures)
    card = persona_card(task.data.files)
    probes = first_of_each_group(read_probe_files(task.evaluation.probes, card), task.evaluation.samples)
    add_probe_pictures(pictures, probes)
    read_prompts(task.rehearsal.prompts)  # checked before the model loads
    if PartialState().is_main_process:
        check_pictures(pictures.named_by)
    return ImageInputs(template, data, rehearsal, card, probes, pictures)


def train(
    task: ImageTask,
    inputs: ImageInputs,
    run_dir: RunDir,
    *,
    resume: bool = False,
    deepspeed: dict[str, Any] | None = None,
) -> list[StepReport]:
    """Load the models, generate rehearsal rows, cache features, train.

    Raises:
        KitError: something that the user must change; nothing was trained, or a checkpoint was saved.
    """
    template, data, probes = inputs.template, inputs.data, inputs.probes
    loaded = load_model(
        task.versioned_model, template, task.quant, task.run.device, full_finetuning=task.full_finetuning
    )
    generated = rehearsal_rows(loaded, task.rehearsal, task.optim, task.data.pack, task.run.seed)
    rehearsal = [*inputs.rehearsal, *(encode_row(row, template, task.data) for row in generated)]
    write_data_facts(run_dir, task.data, inputs, generated=generated, ratio=task.rehearsal.ratio)
    parts = make_initial_parts(task, loaded, training=True)
    with PartialState().main_process_first():
        features = make_features(parts, inputs.pictures, task.pictures)
    module = build_vlm(parts, features, loaded.compute_dtype)
    if task.data.pack:
        check_packing_isolation(module, data.samples, loaded.device)
    log_trainable(module, task, f"stage {task.stage}")
    if task.optim.gradient_checkpointing:
        parts.language.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    rates = {"projector.": task.rates.projector, "features.": task.rates.tower}
    trainable = TrainableModule(
        module,
        save=lambda folder: save_trained_weights(parts, folder),
        load=lambda folder: load_trained_weights(parts, folder),
        save_final=lambda: save_finetuned(parts, loaded, run_dir, task),
        learning_rates={prefix: rate for prefix, rate in rates.items() if rate is not None},
    )
    answer = make_answer_function(
        parts.language.network, template, loaded.compute_dtype, task.evaluation.max_new_tokens,
        embed=make_embed_function(module, inputs.pictures),
    )  # fmt: skip
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


def compare(run_dir: RunDir, task: ImageTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask the model every probe, with initial and with trained weights, and write the report.

    Raises:
        KitError: probes, base models or the result of training are missing or do not fit.
    """
    check_finetuned(run_dir, task)
    probes, files, card = load_probes(run_dir, probe_files or task.evaluation.probes)
    template = load_vlm_template(task)
    table = add_probe_pictures(PictureTable(), probes)

    def answers(loaded: LoadedModel, parts: VlmParts) -> list[str]:
        module = build_vlm(parts, make_features(parts, table, task.pictures), loaded.compute_dtype)
        answer = make_answer_function(
            parts.language.network, template, loaded.compute_dtype, task.evaluation.max_new_tokens,
            embed=make_embed_function(module, table), shown=True, batch_size=COMPARE_BATCH,
        )  # fmt: skip
        return answer(probes)

    loaded = load_model(task.versioned_model, template, task.quant, task.run.device)
    parts = make_initial_parts(task, loaded)
    before = answers(loaded, parts)
    if task.full_finetuning or task.whole_tower:
        loaded.release()
        loaded, parts = load_finetuned(run_dir, task, template)
    else:
        load_trained_weights(parts, run_dir.adapter)
    return compare_answers(run_dir, task.run.seed, probes, files, card, before, answers(loaded, parts))


def load_vlm_template(task: ImageTask) -> ChatTemplate:
    """The chat template with the tower's number of image tokens, after a check that all parts fit.

    Raises:
        KitError: as `check_tower`.
    """
    patches = check_tower(task).patches
    return load_template(task.versioned_model, task.system, patches, template_name=task.template)


def check_tower(task: ImageTask) -> TowerFacts:
    """Check that tower, start and language model fit each other; only their configurations are read.

    Raises:
        KitError: they do not.
    """
    facts = tower_facts(task.tower)
    for key, trained in (("tower_lora", task.tower_lora is not None), ("whole_tower", task.whole_tower)):
        if trained and not facts.trainable:
            raise ConfigError(f"{key}: {task.tower} cannot be trained; use a CLIP or SigLIP tower, or leave it out.")
    if task.start is not None:
        lora = task.lora if task.stage == "tune" else None
        check_initial_parts(task.start, facts.width, language_width(task.versioned_model), lora, task.tower_lora)
    return facts


def encode_files(
    task: ImageTask, template: ChatTemplate, table: PictureTable
) -> tuple[EncodedData, list[EncodedSample]]:
    """The training data and the rows of rehearsal.files in tokens; their pictures are added to the table."""
    rows = read_image_conversations(task.data.files, task.pictures.folder)
    data = encode_data(rows, task.data, template, task.run.seed, table.number)
    from_files = distinct_rows(read_image_conversations(task.rehearsal.files, None))
    return data, [encode_row(row, template, task.data, table.number) for row in from_files]


def add_probe_pictures(table: PictureTable, probes: Sequence[Probe]) -> PictureTable:
    """The table with the pictures of probes added."""
    for probe in probes:
        if probe.image is not None:
            table.number(probe.image, f"probe {probe.ask!r}")
    return table


def forecast(task: ImageTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and FLOPs from the data, the tokenizer and the model configurations; no weights load."""
    template = load_vlm_template(task)
    data, rehearsal = encode_files(task, template, PictureTable())
    width, hidden = tower_facts(task.tower).width, language_width(task.versioned_model)
    projector = (width + 1) * hidden + (hidden + 1) * hidden
    tower = count_trainable(task.tower, task.tower_lora) if task.tower_lora or task.whole_tower else 0
    return forecast_run(
        task, data, rehearsal, template.pad_id,
        frozen=task.stage == "align", others=projector + tower, processes=processes,
    )  # fmt: skip
