"""Dataset files -> encoded rows, each distinct row once."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import Conversation
from tuning.data.formats import SourceRow
from tuning.errors import DataError
from tuning.settings import Data
from tuning.training.samples import IMAGE_TOKEN_INDEX, EncodedSample

log = logging.getLogger("twinlens")
PictureNumbering = Callable[[str], int]  # the path of a picture -> its number in the run


@dataclass(frozen=True, slots=True)
class EncodedData:
    """What is trained on, in tokens.

    Args:
        samples: distinct training rows.
        rows: int32[N], for each row of the files the number of its sample.
        validation: distinct rows whose questions are kept out of training.
    """

    samples: list[EncodedSample]
    rows: NDArray[np.int32]
    validation: list[EncodedSample]


def encode_data(
    rows: Iterable[SourceRow],
    data: Data,
    template: ChatTemplate,
    seed: int,
    picture_number: PictureNumbering | None = None,
) -> EncodedData:
    """Encode and split. Copies of a row are encoded once and take four bytes each.

    Args:
        number: gives each picture its number, where rows have pictures.

    Raises:
        DataError: a row cannot be used, or nothing is left to train on.
    """
    distinct: dict[Conversation, int] = {}
    samples: list[EncodedSample] = []
    numbers: list[int] = []
    for row in rows:
        sample = distinct.setdefault(row.conversation, len(samples))
        if sample == len(samples):
            samples.append(encode_row(row, template, data, picture_number))
        numbers.append(sample)
    if cut := sum(sample.truncated for sample in samples):
        log.info(
            "%d distinct rows are longer than %d tokens and were cut after the last whole answer", cut, data.max_length
        )
    if not data.validation:
        return EncodedData(samples, np.asarray(numbers, np.int32), [])
    held = held_out({conversation.question for conversation in distinct}, data.validation, seed)
    kept = [sample for conversation, sample in distinct.items() if conversation.question not in held]
    if not kept:
        raise DataError(
            f"data.validation: {data.validation} keeps every question out of training; lower it or add questions."
        )
    renumbered = {old: new for new, old in enumerate(kept)}
    return EncodedData(
        [samples[sample] for sample in kept],
        np.asarray([renumbered[sample] for sample in numbers if sample in renumbered], np.int32),
        [samples[sample] for conversation, sample in distinct.items() if conversation.question in held],
    )


def encode_row(
    row: SourceRow, template: ChatTemplate, data: Data, picture_number: PictureNumbering | None = None
) -> EncodedSample:
    """One row in tokens, with the numbers of the pictures that were not cut off with its end.

    Raises:
        DataError: as `ChatTemplate.encode`.
    """
    separated = data.pack and data.packing == "xtuner"  # there a row sees what the row before it ended with
    sample = template.encode(row.conversation, data.max_length, row.where, separated)
    if picture_number is None or not row.conversation.images:
        return sample
    seen = int((sample.ids == IMAGE_TOKEN_INDEX).sum()) // template.tokens_per_image
    return replace(sample, picture_ids=tuple(picture_number(image) for image in row.conversation.images[:seen]))


def held_out(questions: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the distinct questions, at least one, chosen by hash so that other rows do not change the choice."""
    ordered = sorted(questions, key=lambda question: hashlib.sha256(f"{seed}:{question}".encode()).digest())
    return set(ordered[: max(1, round(share * len(ordered)))])
