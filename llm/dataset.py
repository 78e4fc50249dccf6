"""Training data: each row tokenized once, micro-batches of the whole run, `data.json` with row counts."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from numpy.typing import NDArray

from llm.chat_template.encoding import ChatTemplate
from tuning.atomic import write_atomically
from tuning.data.card import DatasetCard, card_to_dict, file_sha256
from tuning.data.conversation import Conversation, to_jsonl
from tuning.data.formats import SourceRow
from tuning.errors import DataError
from tuning.evaluation.probes import Probe
from tuning.paths import resolve_path
from tuning.run_dir import RunDir
from tuning.settings import Data, Optim
from tuning.training.packing import MicroBatches
from tuning.training.samples import IMAGE_TOKEN_INDEX, EncodedSample

log = logging.getLogger("twinlens")
# Picture path, and the row that contains it -> the picture's number in the run.
PictureNumbering = Callable[[str | Path, str], int]


@dataclass(frozen=True, slots=True)
class EncodedData:
    """The training data in tokens.

    Args:
        samples: distinct training rows.
        rows: int32[N], for each row of the files its index in `samples`.
        validation: distinct rows that are held out of training.
    """

    samples: list[EncodedSample]
    rows: NDArray[np.int32]
    validation: list[EncodedSample]


@dataclass(frozen=True, slots=True)
class TrainingInputs:
    """The inputs of a run, read and checked before the model loads.

    Args:
        rehearsal: distinct rows of `rehearsal.files`.
        card: the card of the dataset, if it has one.
        probes: the questions for the samples during training.
    """

    template: ChatTemplate
    data: EncodedData
    rehearsal: list[EncodedSample]
    card: DatasetCard | None
    probes: list[Probe]


def encode_data(
    rows: Iterable[SourceRow],
    data: Data,
    template: ChatTemplate,
    seed: int,
    picture_number: PictureNumbering | None = None,
) -> EncodedData:
    """Encode rows and split off validation rows. A repeated row is encoded once; each copy needs four bytes.

    Args:
        picture_number: returns the number of a picture, if rows have pictures.

    Raises:
        DataError: a row cannot be used, or no row is left to train on.
    """
    distinct: dict[Conversation, int] = {}
    samples: list[EncodedSample] = []
    numbers: list[int] = []
    for row in rows:
        number = distinct.setdefault(row.conversation, len(samples))
        if number == len(samples):
            samples.append(encode_row(row, template, data, picture_number))
        numbers.append(number)
    if truncated := sum(sample.truncated for sample in samples):
        log.info(
            "%d distinct rows are longer than %d tokens and were cut after the last complete answer",
            truncated, data.max_length,
        )  # fmt: skip
    questions = held_out_questions({conversation.question for conversation in distinct}, data.validation, seed)
    validation = {number for conversation, number in distinct.items() if conversation.question in questions}
    training = [number for number in range(len(samples)) if number not in validation]
    if questions and not training:
        raise DataError(
            f"data.validation: {data.validation} leaves no question for training; lower it, or add questions."
        )
    renumbered = {old: new for new, old in enumerate(training)}
    return EncodedData(
        [samples[number] for number in training],
        np.asarray([renumbered[number] for number in numbers if number in renumbered], np.int32),
        [samples[number] for number in sorted(validation)],
    )


def encode_row(
    row: SourceRow, template: ChatTemplate, data: Data, picture_number: PictureNumbering | None = None
) -> EncodedSample:
    """One row in tokens, with the numbers of its pictures, without the pictures that truncation removed.

    Raises:
        DataError: as `ChatTemplate.encode`.
    """
    keep_separator = data.pack and data.packing == "xtuner"  # XTuner's packing keeps it
    sample = template.encode(row.conversation, data.max_length, row.where, keep_separator)
    if picture_number is None or not row.conversation.images:
        return sample
    images = row.conversation.images[: int((sample.ids == IMAGE_TOKEN_INDEX).sum()) // template.tokens_per_image]
    return replace(sample, picture_ids=tuple(picture_number(image, row.where) for image in images))


def held_out_questions(questions: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the distinct questions, at least one unless the share is 0.

    The choice is by hash, so that other rows do not change it.
    """
    ordered = sorted(questions, key=lambda question: hashlib.sha256(f"{seed}:{question}".encode()).digest())
    return set(ordered[: max(1, round(share * len(ordered))) if share else 0])


def make_batches(
    data: EncodedData,
    rehearsal: Sequence[EncodedSample],
    settings: Data,
    optim: Optim,
    *,
    ratio: float,
    pad_id: int,
    seed: int,
    processes: int | None = None,
) -> MicroBatches:
    """The micro-batches of the whole run, with `ratio` rehearsal rows for each data row."""
    per_step = optim.accumulate * (processes or PartialState().num_processes)
    first = len(data.samples)
    return MicroBatches(
        [*data.samples, *rehearsal],
        data.rows,
        np.arange(first, first + len(rehearsal), dtype=np.int32),
        repeat=settings.repeat,
        ratio=ratio,
        micro_batch=optim.micro_batch,
        max_length=settings.max_length,
        packing=settings.packing if settings.pack else None,
        workers=settings.pack_workers,
        pad_id=pad_id,
        seed=seed,
        epochs=optim.epochs,
        limit=optim.steps * per_step if optim.steps else None,
    )


def write_data_facts(
    run_dir: RunDir, settings: Data, inputs: TrainingInputs, *, generated: Sequence[SourceRow], ratio: float
) -> None:
    """Write `data.json` (files with hashes, row counts, dataset card) and, with rehearsal, `rehearsal.jsonl`.

    Args:
        generated: rehearsal rows with answers of the base model.
    """
    data = inputs.data
    log.info("data: %d rows, %d distinct, %d held out", len(data.rows), len(data.samples), len(data.validation))
    if not PartialState().is_main_process:
        return
    files = [resolve_path(file) for file in settings.files]
    facts = {
        "files": [{"path": str(file), "sha256": file_sha256(file)} for file in files],
        "rows": len(data.rows),
        "distinct": len(data.samples),
        "validation": len(data.validation),
        "repeat": settings.repeat,
        "card": card_to_dict(inputs.card) if inputs.card else None,
    }
    if rehearsal := len(inputs.rehearsal) + len(generated):
        write_atomically(run_dir.rehearsal, to_jsonl(row.conversation for row in generated))
        facts["rehearsal"] = {"rows": rehearsal, "ratio": ratio}
    write_atomically(run_dir.data, json.dumps(facts, ensure_ascii=False, indent=2) + "\n")
