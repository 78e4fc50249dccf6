"""Encoded samples and micro-batches: token ids, loss mask, labels, position ids.

Shapes: B sequences in a micro-batch, T tokens in a sequence, I pictures in a micro-batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

IGNORE_INDEX = -100  # the label that cross entropy ignores
IMAGE_TOKEN_INDEX = -200  # the id that a picture's feature replaces; the tokenizer never produces it


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One conversation in tokens.

    Args:
        ids: int32[T], `IMAGE_TOKEN_INDEX` at each patch of a picture.
        loss_mask: bool[T], true for tokens of an answer and for its stop token.
        where: file and row of the conversation, for messages.
        truncated: whether answers were removed because the row was too long.
        picture_ids: numbers of its pictures, in the order of their patches.
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    where: str = ""
    truncated: bool = False
    picture_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, right-padded.

    Args:
        input_ids: int64[B, T].
        labels: int64[B, T], `IGNORE_INDEX` on prompts and padding; not shifted.
        position_ids: int64[B, T], from 0 for each isolated row of a sequence.
        num_tokens: number of tokens without padding.
        where: file and row of each sample.
        picture_ids: I numbers, in the order of their patches, sequence by sequence.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    num_tokens: int
    where: tuple[str, ...]
    picture_ids: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on another device."""
        ids, labels, positions = (each.to(device) for each in (self.input_ids, self.labels, self.position_ids))
        return replace(self, input_ids=ids, labels=labels, position_ids=positions)

    @property
    def num_labels(self) -> int:
        """Number of labelled tokens."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def without_labels(self) -> "Batch":
        """A batch of the same shapes without labels, for processes that get no rows in the last step."""
        return replace(self, labels=torch.full_like(self.labels, IGNORE_INDEX), num_tokens=0, where=())


def collate(packs: Sequence[Sequence[EncodedSample]], pad_id: int, *, isolated: bool = True) -> Batch:
    """Concatenate each pack into one sequence and pad on the right.

    After a single row, position ids continue through the padding, so that a causal mask is enough and fast attention
    kernels can run. After several rows, the padding has its own position ids from 0, as a row without labels.

    Args:
        isolated: whether each row of a pack attends only to itself. Otherwise the rows are one text.
    """
    width = max(sum(len(sample) for sample in pack) for pack in packs)
    input_ids = torch.full((len(packs), width), pad_id, dtype=torch.long)
    labels = torch.full((len(packs), width), IGNORE_INDEX, dtype=torch.long)
    position_ids = torch.arange(width).repeat(len(packs), 1)
    for row, pack in enumerate(packs):
        start = 0
        for sample in pack:
            end = start + len(sample)
            ids = torch.from_numpy(sample.ids.astype(np.int64))
            input_ids[row, start:end] = ids
            labels[row, start:end] = torch.where(torch.from_numpy(sample.loss_mask), ids, IGNORE_INDEX)
            if isolated:
                position_ids[row, start:end] = torch.arange(end - start)
            start = end
        if isolated and len(pack) > 1:
            position_ids[row, start:] = torch.arange(width - start)
    samples = [sample for pack in packs for sample in pack]
    pictures = tuple(picture for sample in samples for picture in sample.picture_ids)
    where = tuple(sample.where for sample in samples)
    return Batch(input_ids, labels, position_ids, sum(map(len, samples)), where, pictures)
