"""Packing: which rows share a sequence and which sequences share a micro-batch, drawn from a seed.

Rows are never copied: an epoch is an array of row numbers, whatever the rows are repeated.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuning.training.samples import Batch, EncodedSample, collate
from tuning.training.xtuner_packing import ConcatThenSplitPacks, Pack, Span

PackedRows = tuple[int, ...]  # numbers of the samples laid whole into one sequence
OPEN_PACKS = 64  # sequences still being filled; more fills them better and mixes rows less
WINDOW = 16  # micro-batches in which rows of like length are gathered, when padding


def fill_packs(lengths: NDArray[np.int32], rows: NDArray[np.int32], max_length: int) -> Iterator[PackedRows]:
    """Lay rows into sequences of at most `max_length` tokens, each row into the fullest sequence that takes it."""
    packs: list[list[int]] = []
    room: list[int] = []
    for row in rows.tolist():
        length = int(lengths[row])
        fitting = [index for index, left in enumerate(room) if left >= length]
        if fitting:
            best = min(fitting, key=room.__getitem__)
            packs[best].append(row)
            room[best] -= length
        else:
            packs.append([row])
            room.append(max_length - length)
        if len(packs) > OPEN_PACKS:
            fullest = min(range(len(room)), key=room.__getitem__)
            room.pop(fullest)
            yield tuple(packs.pop(fullest))
    yield from map(tuple, packs)


def group_by_length(
    lengths: NDArray[np.int32], rows: NDArray[np.int32], micro_batch: int, rng: np.random.Generator
) -> Iterator[list[PackedRows]]:
    """Micro-batches of single rows; within a window, rows of like length meet, so that little is padded."""
    size = micro_batch * WINDOW
    for start in range(0, len(rows), size):
        window = rows[start : start + size]
        window = window[np.argsort(lengths[window], kind="stable")]
        groups = [[(int(row),) for row in window[at : at + micro_batch]] for at in range(0, len(window), micro_batch)]
        yield from (groups[index] for index in rng.permutation(len(groups)))


class MicroBatches:
    """The micro-batches of a whole run.

    Args:
        samples: distinct encoded rows.
        rows: int32[N], the number of each data row's sample; an epoch sees all of them `repeat` times.
        rehearsal: int32[M], the numbers of the rehearsal samples; an epoch draws `ratio` of them for each data row.
        micro_batch: sequences in a micro-batch, of at most `max_length` tokens.
        packing: how rows share a sequence: not at all, whole and each by itself, or as XTuner cuts them, which is done
            once, by so many `workers`.
        epochs: passes over the data; or
        limit: micro-batches in all.
    """

    def __init__(
        self,
        samples: Sequence[EncodedSample],
        rows: NDArray[np.int32],
        rehearsal: NDArray[np.int32],
        *,
        repeat: int,
        ratio: float,
        micro_batch: int,
        max_length: int,
        packing: Literal["isolated", "xtuner"] | None,
        workers: int,
        pad_id: int,
        seed: int,
        epochs: float | None = None,
        limit: int | None = None,
    ) -> None:
        assert (epochs is None) != (limit is None)
        self.samples = samples
        self.lengths = np.asarray([len(sample) for sample in samples], np.int32)
        self._rows, self._rehearsal = rows, rehearsal
        self._repeat, self._ratio = repeat, ratio
        self._micro_batch, self._max_length, self._packing, self._workers = micro_batch, max_length, packing, workers
        self._pad_id, self._seed, self._epochs, self._limit = pad_id, seed, epochs, limit

    def count(self) -> int:
        """Micro-batches in the whole run."""
        return self._limit if self._limit is not None else sum(1 for _ in self.packs())

    def stream(self, skip: int = 0) -> Iterator[Batch]:
        """The micro-batches in order, without making the first `skip`."""
        for sequences in islice(self.sequences(), skip, None):
            yield collate(sequences, self._pad_id, isolated=self._packing != "xtuner")

    def sequences(self) -> Iterator[list[list[EncodedSample]]]:
        """The same micro-batches before they are padded, each sequence as what is laid into it."""
        for packs in self.packs():
            yield [[self._cut_sample(piece) for piece in pack] for pack in packs]

    def packs(self) -> Iterator[list[Pack]]:
        """The same micro-batches as pieces of samples."""
        return islice(self._all_packs(), self._limit) if self._limit is not None else self._all_packs()

    def _cut_sample(self, piece: Span) -> EncodedSample:
        sample, tokens = self.samples[piece.sample], slice(piece.start, piece.end)
        if piece.end - piece.start == len(sample):
            return sample
        return replace(sample, ids=sample.ids[tokens], loss_mask=sample.loss_mask[tokens])

    def _all_packs(self) -> Iterator[list[Pack]]:
        cut = None
        if self._packing == "xtuner":
            rows = self._epoch_rows(np.random.default_rng(self._seed))
            cut = ConcatThenSplitPacks(self.lengths, rows, self._max_length, self._workers)
        epoch, left = 0, self._epochs
        while left is None or left > 0:
            rng = np.random.default_rng((self._seed, epoch))
            share = 1.0 if left is None else min(left, 1.0)
            yield from self._micro_batches(rng, share) if cut is None else self._shuffled(cut, rng, share)
            epoch += 1
            left = None if left is None else round(left - 1, 9)

    def _epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int32]:
        rows = np.tile(self._rows, self._repeat)
        if len(self._rehearsal) and (wanted := round(self._ratio * len(rows))):
            copies = -(-wanted // len(self._rehearsal))
            drawn = np.concatenate([rng.permutation(self._rehearsal) for _ in range(copies)])[:wanted]
            rows = np.concatenate([rows, drawn])
        return rng.permutation(rows)

    def _micro_batches(self, rng: np.random.Generator, share: float) -> Iterator[list[Pack]]:
        rows = self._epoch_rows(rng)
        rows = rows[: max(1, round(share * len(rows)))]
        if self._packing is None:
            groups = group_by_length(self.lengths, rows, self._micro_batch, rng)
        else:
            packs = fill_packs(self.lengths, rows, self._max_length)
            groups = iter(lambda: list(islice(packs, self._micro_batch)), [])
        for group in groups:
            yield [tuple(Span(row, 0, int(self.lengths[row])) for row in pack) for pack in group]

    def _shuffled(self, packs: ConcatThenSplitPacks, rng: np.random.Generator, share: float) -> Iterator[list[Pack]]:
        order = rng.permutation(len(packs))[: max(1, round(share * len(packs)))]
        for start in range(0, len(order), self._micro_batch):
            yield [packs[number] for number in order[start : start + self._micro_batch].tolist()]
