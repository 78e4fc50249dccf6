"""Encoded samples and micro-batches: token ids, loss mask, labels, position ids.

Shapes: B sequences in a micro-batch, T tokens in a sequence, I pictures in it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

IGNORE_INDEX = -100  # the label that cross entropy passes over
IMAGE_TOKEN_INDEX = -200  # stands in the ids where a picture's feature goes; no text can spell it


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One conversation in tokens.

    Args:
        ids: int32[T], `IMAGE_TOKEN_INDEX` at each patch of a picture.
        loss_mask: bool[T], true where the token is part of an answer or its stop token.
        where: file and row it came from, for messages.
        truncated: whether answers were left out because the row was too long.
        picture_ids: the numbers of its pictures, in the order of their patches.
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
        position_ids: int64[B, T], starting again at 0 with every row that stands by itself in a sequence.
        num_tokens: how many of the B x T are not padding.
        where: file and row of everything in it.
        picture_ids: I numbers, in the order of their patches, row after row.
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
        return Batch(ids, labels, positions, self.num_tokens, self.where, self.picture_ids)

    @property
    def num_labels(self) -> int:
        """How many tokens are learned from."""
        return int((self.labels[:, 1:] != IGNORE_INDEX).sum())

    def without_labels(self) -> "Batch":
        """The same shapes with nothing to learn: what a rank computes when the last step has no rows left for it."""
        nothing = torch.full_like(self.labels, IGNORE_INDEX)
        return Batch(self.input_ids, nothing, self.position_ids, 0, (), self.picture_ids)


class BatchSource(Protocol):
    """An endless or finite run of micro-batches, the same for the same seed."""

    def count(self) -> int:
        """Micro-batches in the whole run."""
        ...

    def stream(self, skip: int = 0) -> Iterator[Batch]:
        """The micro-batches in order, without making the first `skip`."""
        ...


def collate(packs: Sequence[Sequence[EncodedSample]], pad_id: int, *, isolated: bool = True) -> Batch:
    """Lay each pack into one sequence and pad on the right.

    Padding counts positions on where a sequence holds one row (a causal mask alone then keeps the fast attention
    kernels) and starts a row of its own, masked, behind several.

    Args:
        isolated: whether the rows of a pack stand each by itself, or follow each other as one text.
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
