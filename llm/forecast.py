"""Cost forecast of a run without loading weights: steps, tokens, parameters, FLOPs."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM

from llm.data_files import read_prompts
from llm.dataset import EncodedData, make_batches
from llm.loading import load_model_config
from llm.rehearsal import rehearsal_prompt_limit
from tuning.modules.quantize import linear_layers
from tuning.settings import Task
from tuning.training.samples import EncodedSample


@dataclass(frozen=True, slots=True)
class Forecast:
    """The cost of a run, computed without loading weights.

    Args:
        steps: optimizer steps.
        micro_batches: on all devices together; XTuner calls them iterations.
        sequences: packs, or padded rows, of the whole run.
        rows: data rows of one epoch; `rehearsal` is the number of rehearsal rows.
        tokens: of the whole run; a rehearsal prompt counts as a row of the data's mean length.
        labels: tokens with loss, a part of `tokens`.
        parameters: of the language model; `trainable` counts all trained parameters.
        flops: of the language model for the whole run: per weight and token 4 if it is frozen, 6 if it is trained, and
            2 more with gradient checkpointing.
    """

    steps: int
    micro_batches: int
    sequences: int
    rows: int
    rehearsal: int
    tokens: int
    labels: int
    parameters: int
    trainable: int
    flops: float


def forecast_run(
    task: Task, data: EncodedData, rehearsal: list[EncodedSample], pad_id: int, *, frozen: bool = False,
    others: int = 0, processes: int = 1,
) -> Forecast:  # fmt: skip
    """Count steps, tokens and FLOPs of a run.

    Args:
        rehearsal: the rows of rehearsal.files.
        frozen: whether the language model is not trained.
        others: number of trained parameters outside the language model.
    """
    prompts = len(read_prompts(task.rehearsal.prompts)) if task.rehearsal.ratio else 0
    prompts = min(prompts, rehearsal_prompt_limit(task.rehearsal, task.optim, task.data.pack, processes) or prompts)
    mean = round(np.mean([len(data.samples[row]) for row in data.rows]))
    learned = round(np.mean([int(data.samples[row].loss_mask.sum()) for row in data.rows]))
    stand_in = EncodedSample(np.zeros(mean, np.int32), np.arange(mean) >= mean - learned)
    batches = make_batches(
        data, [*rehearsal, *[stand_in] * prompts], task.data, task.optim,
        ratio=task.rehearsal.ratio, pad_id=pad_id, seed=task.run.seed, processes=processes,
    )  # fmt: skip
    plan = list(batches.packs())
    pieces = [piece for packs in plan for pack in packs for piece in pack]
    tokens = sum(piece.end - piece.start for piece in pieces)
    labels = sum(int(batches.samples[row].loss_mask[start:end].sum()) for row, start, end in pieces)
    steps = task.optim.steps or -(-len(plan) // (processes * task.optim.accumulate))
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(load_model_config(task.versioned_model), attn_implementation="sdpa")
    model.tie_weights()  # without memory, tied weights are separate and would be counted twice
    head = model.get_output_embeddings()
    matrices = [module.weight for _, module in linear_layers(model) if module is not head]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    adapter = sum(task.lora.rank * sum(weight.shape) for weight in matrices) if task.lora and not frozen else 0
    arithmetic = 4 + 2 * task.full_finetuning + 2 * task.optim.gradient_checkpointing
    return Forecast(
        steps,
        len(plan),
        sum(map(len, plan)),
        len(data.rows) * task.data.repeat,
        prompts + len(rehearsal),
        tokens,
        labels,
        parameters,
        others + (parameters if task.full_finetuning else adapter),
        arithmetic * float(sum(weight.numel() for weight in matrices)) * tokens,
    )


def as_dict(report: Forecast) -> dict[str, Any]:
    """A forecast as plain values."""
    return dataclasses.asdict(report)
