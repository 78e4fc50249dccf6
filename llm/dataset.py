"""Dataset files -> encoded rows, each distinct row once."""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm.sources import read_conversations
from llm.template import ChatTemplate
from tuning.conversation import Conversation
from tuning.errors import DataError
from tuning.samples import EncodedSample
from tuning.settings import Data

log = logging.getLogger("twinlens")


@dataclass(frozen=True, slots=True)
class TextData:
    """What is trained on, in tokens.

    Args:
        samples: distinct training rows.
        rows: int32[N], for each row of the files the number of its sample.
        validation: distinct rows whose questions are kept out of training.
    """

    samples: list[EncodedSample]
    rows: NDArray[np.int32]
    validation: list[EncodedSample]


def encode_data(data: Data, template: ChatTemplate, seed: int) -> TextData:
    """Read, encode and split. Copies of a row are encoded once and take four bytes each.

    Raises:
        DataError: a row cannot be used, or nothing is left to train on.
    """
    distinct: dict[Conversation, int] = {}
    samples: list[EncodedSample] = []
    rows: list[int] = []
    for row in read_conversations(data.files):
        number = distinct.setdefault(row.conversation, len(samples))
        if number == len(samples):
            samples.append(template.encode(row.conversation, data.max_length, row.where))
        rows.append(number)
    if cut := sum(sample.cut for sample in samples):
        log.info(
            "%d distinct rows are longer than %d tokens and were cut after the last whole answer", cut, data.max_length
        )
    if not data.validation:
        return TextData(samples, np.asarray(rows, np.int32), [])
    held = held_out({conversation.question for conversation in distinct}, data.validation, seed)
    kept = [number for conversation, number in distinct.items() if conversation.question not in held]
    if not kept:
        raise DataError(
            f"data.validation: {data.validation} keeps every question out of training; lower it or add questions."
        )
    renumbered = {old: new for new, old in enumerate(kept)}
    return TextData(
        [samples[number] for number in kept],
        np.asarray([renumbered[number] for number in rows if number in renumbered], np.int32),
        [samples[number] for conversation, number in distinct.items() if conversation.question in held],
    )


def held_out(questions: Iterable[str], share: float, seed: int) -> set[str]:
    """A share of the distinct questions, at least one, chosen by hash so that other rows do not change the choice."""
    ordered = sorted(questions, key=lambda question: hashlib.sha256(f"{seed}:{question}".encode()).digest())
    return set(ordered[: max(1, round(share * len(ordered)))])
