"""The text path, told in the order it happens."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState, init_empty_weights
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from llm.dataset import TextData, encode_data
from llm.generation import answer_batched
from llm.loading import LoadedModel, load_model, load_template, model_folder
from llm.model import LanguageModel, refuse_leaking_packs
from llm.rehearsal import rehearse
from llm.settings import TextTask
from llm.sources import persona_card, read_prompts
from llm.template import ChatTemplate
from tuning.card import DatasetCard, card_from_dict, card_to_dict, file_sha256
from tuning.compare import Comparison, compare
from tuning.conversation import Conversation, single, to_jsonl
from tuning.engine import StepReport, Trainee, Watch, fit
from tuning.errors import ConfigError
from tuning.files import resolve_path, shown, write_atomically
from tuning.lora import attach_adapter, load_adapter, read_adapter_config, restore_adapter, save_adapter
from tuning.packing import Batches
from tuning.probes import Probe, hit, read_probes
from tuning.progress import Counter
from tuning.quantize import linears
from tuning.report import write_report
from tuning.run_dir import RunDir, read_lines
from tuning.samples import EncodedSample, collate

log = logging.getLogger("twinlens")


def train(
    task: TextTask, run_dir: RunDir, *, resume: bool = False, deepspeed: dict[str, Any] | None = None
) -> list[StepReport]:
    """Everything that can be wrong with data and probes, then the model, its rehearsal, the adapter, and the loop.

    Raises:
        KitError: something the user must change; nothing was trained, or a checkpoint was kept.
    """
    template = load_template(task.model, task.system)
    say_system(task, template)
    data = encode_data(task.data, template, task.run.seed)
    card = write_data_facts(task, data, run_dir)
    probes = [probe for file in task.evaluation.probes for probe in read_probes(resolve_path(file), card)]
    read_prompts(task.rehearsal.prompts)

    loaded = load_model(task.model, template, task.quant, task.run.device)
    rehearsed = rehearsal_rows(task, loaded, run_dir)
    if task.data.pack:
        refuse_leaking_packs(loaded.model, loaded.compute, data.samples)

    adapted = attach_adapter(loaded.model, task.lora, task.run.seed)
    log.info("adapter: rank %d, %s", task.lora.rank, trainable_share(adapted))
    if task.optim.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = LanguageModel(adapted, loaded.compute)
    trainee = Trainee(
        module,
        lambda folder: save_adapter(adapted, folder, task.model),
        lambda folder: restore_adapter(adapted, folder),
    )
    asked = [probe for group in by_group(probes) for probe in group[: task.evaluation.samples]]
    watch = Watch(
        task.evaluation.every,
        lambda step: sample_rows(step, asked, ask(adapted, loaded, task.evaluation.max_new_tokens)(asked)),
        lambda: mean_loss(module, data.validation, template.pad_id, loaded.device),
    )
    batches = mix(task, data, encode_rehearsal(rehearsed, template, task.data.max_length), template.pad_id)
    reports = fit(trainee, batches, task.optim, task.run, run_dir, watch, resume=resume, deepspeed=deepspeed)
    if PartialState().is_main_process:
        save_adapter(adapted, run_dir.adapter, task.model)
    return reports


def judge(run_dir: RunDir, task: TextTask, probe_files: Sequence[Path] = ()) -> Comparison:
    """Ask every probe with the adapter off and on, in one load of the model, and write the report.

    Raises:
        KitError: probes, model or adapter are missing or do not fit.
    """
    read_adapter_config(run_dir.adapter)
    facts = json.loads(run_dir.data.read_text(encoding="utf-8"))
    card = card_from_dict(facts["card"]) if facts.get("card") else None
    files = [resolve_path(file) for file in probe_files or task.evaluation.probes]
    probes = [probe for file in files for probe in read_probes(file, card)]
    template = load_template(task.model, task.system)
    loaded = load_model(task.model, template, task.quant, task.run.device)
    adapted = load_adapter(loaded.model, run_dir.adapter)
    answers = ask(adapted, loaded, task.evaluation.max_new_tokens, shown=True)
    with adapted.disable_adapter():
        before = answers(probes)
    after = answers(probes)
    comparison = compare(
        probes, before, after, card, seeds=[task.run.seed], probe_files=[shown(file) for file in files]
    )
    write_report(
        run_dir.path,
        comparison,
        steps=read_lines(run_dir.steps),
        samples=read_lines(run_dir.samples),
        task_yaml=run_dir.task.read_text(encoding="utf-8"),
        card=card,
        environment=json.loads(run_dir.environment.read_text(encoding="utf-8")),
        rehearsal=facts["rehearsal"] | what_stayed(comparison) if "rehearsal" in facts else None,
    )
    return comparison


def what_stayed(comparison: Comparison) -> dict[str, str]:
    """What rehearsal is there for, in counts: unrelated answers that stayed right, and those the persona is in."""
    unrelated = [row for row in comparison.rows if row.group == "unrelated"]
    known = [row for row in unrelated if row.before_hit]
    return {
        "unrelated answers that stayed right": f"{sum(row.after_hit for row in known)} of {len(known)}",
        "unrelated answers with the persona in them": f"{sum(bool(row.leaked_after) for row in unrelated)} "
        f"of {len(unrelated)}",
    }


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will cost, known before the weights load.

    Args:
        steps: optimiser steps; `rows` of data and `rehearsal` prompts are seen in one epoch.
        tokens: of the whole run, rehearsal counted at the data's mean length; `labels` of them are learned from.
        parameters: of the base; `trainable` of the adapter.
        flops: of the whole run: 4 for each weight of the base and token, 6 with gradient checkpointing.
    """

    steps: int
    rows: int
    rehearsal: int
    tokens: int
    labels: int
    parameters: int
    trainable: int
    flops: float


def forecast(task: TextTask, processes: int = 1) -> Forecast:
    """Count steps, tokens and arithmetic from the data, the tokenizer and the model's configuration alone."""
    template = load_template(task.model, task.system)
    data = encode_data(task.data, template, task.run.seed)
    prompts = len(read_prompts(task.rehearsal.prompts)) if task.rehearsal.ratio else 0
    mean = round(np.mean([len(data.samples[row]) for row in data.rows]))
    learned = round(np.mean([int(data.samples[row].supervised.sum()) for row in data.rows]))
    stand_in = EncodedSample(np.zeros(mean, np.int32), np.arange(mean) >= mean - learned)
    batches = mix(task, data, [stand_in] * prompts, template.pad_id, processes)
    plan = [row for packs in batches.plan() for pack in packs for row in pack]
    tokens = int(batches.lengths[plan].sum())
    labels = sum(int(batches.samples[row].supervised.sum()) for row in plan)
    steps = task.optim.steps or -(-batches.count() // (processes * task.optim.accumulate))
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_folder(task.model)))
    model.tie_weights()  # emptied weights come apart, and a tied head would be counted twice
    head = model.get_output_embeddings()
    matrices = [module.weight for _, module in linears(model) if module is not head]
    return Forecast(
        steps,
        len(data.rows) * task.data.repeat,
        prompts,
        tokens,
        labels,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(task.lora.rank * sum(weight.shape) for weight in matrices),
        (6 if task.optim.gradient_checkpointing else 4) * float(sum(weight.numel() for weight in matrices)) * tokens,
    )


def say_system(task: TextTask, template: ChatTemplate) -> None:
    """State which system text the conversations will carry, whoever decided it."""
    if task.system:
        log.info("system text, from the task: %r", task.system)
    elif injected := template.default_system():
        log.info("system text, from the model's own chat template: %r; set `system` in the task to decide it", injected)


def write_data_facts(task: TextTask, data: TextData, run_dir: RunDir) -> DatasetCard | None:
    """`data.json`: the files, their hashes, the card of the persona they speak of."""
    files = [resolve_path(file) for file in task.data.files]
    card = persona_card(files)
    facts = {
        "files": [{"path": str(file), "sha256": file_sha256(file)} for file in files],
        "rows": len(data.rows),
        "distinct": len(data.samples),
        "validation": len(data.validation),
        "repeat": task.data.repeat,
        "card": card_to_dict(card) if card else None,
    }
    if PartialState().is_main_process:
        write_atomically(run_dir.data, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    log.info("data: %d rows, %d distinct, %d held out", len(data.rows), len(data.samples), len(data.validation))
    return card


def rehearsal_rows(task: TextTask, loaded: LoadedModel, run_dir: RunDir) -> list[Conversation]:
    """The base model's answers, by one process first so that all train on the same; kept in the run folder."""
    if not task.rehearsal.prompts or not task.rehearsal.ratio:
        return []
    state = PartialState()
    with state.main_process_first():
        rehearsed = rehearse(loaded, task.rehearsal, rehearsal_wanted(task, state.num_processes), task.run.seed)
    if not rehearsed:
        raise ConfigError(
            f"rehearsal.max_new_tokens: no answer of the base ends within {task.rehearsal.max_new_tokens} tokens; "
            "raise it, or leave rehearsal.prompts out."
        )
    if state.is_main_process:
        write_atomically(run_dir.rehearsal, to_jsonl(rehearsed))
        facts = json.loads(run_dir.data.read_text(encoding="utf-8"))
        facts["rehearsal"] = {"rows": len(rehearsed), "ratio": task.rehearsal.ratio}
        write_atomically(run_dir.data, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
    return rehearsed


def rehearsal_wanted(task: TextTask, processes: int) -> int | None:
    """How many rehearsal rows a run of few steps can see at most; None where that is not known beforehand."""
    if task.optim.steps is None or task.data.pack:
        return None
    rows = task.optim.steps * task.optim.accumulate * task.optim.micro_batch * processes
    return math.ceil(rows * task.rehearsal.ratio / (1 + task.rehearsal.ratio))


def encode_rehearsal(rehearsed: Sequence[Conversation], template: ChatTemplate, max_length: int) -> list[EncodedSample]:
    """Rehearsal rows in tokens, named for messages by their prompt."""
    return [template.encode(row, max_length, f"rehearsal {row.question[:40]!r}") for row in rehearsed]


def mix(
    task: TextTask, data: TextData, rehearsal: Sequence[EncodedSample], pad_id: int, processes: int | None = None
) -> Batches:
    """Data and rehearsal as the micro-batches of the whole run."""
    share = task.optim.accumulate * (processes or PartialState().num_processes)
    first = len(data.samples)
    return Batches(
        [*data.samples, *rehearsal],
        data.rows,
        np.arange(first, first + len(rehearsal), dtype=np.int32),
        repeat=task.data.repeat,
        ratio=task.rehearsal.ratio,
        micro_batch=task.optim.micro_batch,
        max_length=task.data.max_length,
        pack=task.data.pack,
        pad_id=pad_id,
        seed=task.run.seed,
        epochs=task.optim.epochs,
        limit=task.optim.steps * share if task.optim.steps else None,
    )


def ask(
    model: PeftModel, loaded: LoadedModel, max_new_tokens: int, shown: bool = False
) -> Callable[[Sequence[Probe]], list[str]]:
    """A function that answers probes in batches, the likeliest words each time."""

    def answers(probes: Sequence[Probe]) -> list[str]:
        conversations = [single(probe.ask) for probe in probes]
        with Counter("answers", len(conversations), shown=shown) as counter:
            said = answer_batched(
                model,
                loaded.template,
                conversations,
                max_new_tokens,
                compute=loaded.compute,
                on_progress=counter.advance,
            )
        return [answer.text for answer in said]

    return answers


def by_group(probes: Sequence[Probe]) -> list[list[Probe]]:
    """Probes of each group together, groups in their order of appearance."""
    groups: dict[str, list[Probe]] = {}
    for probe in probes:
        groups.setdefault(probe.group, []).append(probe)
    return list(groups.values())


def sample_rows(step: int, probes: Sequence[Probe], answers: Sequence[str]) -> list[dict[str, Any]]:
    """Rows for samples.jsonl."""
    return [
        {"step": step, "group": probe.group, "ask": probe.ask, "answer": answer, "hit": hit(answer, probe)}
        for probe, answer in zip(probes, answers, strict=True)
    ]


def mean_loss(
    module: LanguageModel, samples: Sequence[EncodedSample], pad_id: int, device: torch.device
) -> float | None:
    """Mean loss over the labelled tokens of held-out rows, in nats; None where none are held out."""
    if not samples:
        return None
    losses = [module(collate([[sample]], pad_id).to(device)) for sample in samples]
    return float(sum(loss for loss, _ in losses)) / int(sum(labels for _, labels in losses))


def trainable_share(model: PeftModel) -> str:
    """How much of the model is trained, for the log."""
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.requires_grad}
    return f"{trainable:,} trainable parameters in {', '.join(sorted(types))}"


def as_dict(report: Forecast) -> dict[str, Any]:
    """A forecast as plain values."""
    return dataclasses.asdict(report)
