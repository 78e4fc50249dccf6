"""Packing: shuffle rows by seed, pack them into sequences, group sequences into micro-batches.

Repeated rows are never copied: an epoch is an array of row numbers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tuning.training.samples import Batch, EncodedSample, collate
from tuning.training.xtuner_packing import ConcatThenSplitPacks, Pack, Span

PackedRows = tuple[int, ...]  # numbers of the samples in one sequence, each complete
OPEN_PACKS = 64  # sequences that are filled at the same time; more waste less space but mix rows less
WINDOW = 16  # micro-batches within which padded rows are sorted by length


def fill_packs(lengths: NDArray[np.int32], rows: NDArray[np.int32], max_length: int) -> Iterator[PackedRows]:
    """Pack rows into sequences of at most `max_length` tokens: each row into the fullest sequence with enough room."""
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
    """Micro-batches of single rows. Within a window, rows of similar length are together, for little padding."""
    size = micro_batch * WINDOW
    for start in range(0, len(rows), size):
        window = rows[start : start + size]
        window = window[np.argsort(lengths[window], kind="stable")]
        groups = [[(int(row),) for row in window[at : at + micro_batch]] for at in range(0, len(window), micro_batch)]
        yield from (groups[index] for index in rng.permutation(len(groups)))


@dataclass(frozen=True, eq=False)
class MicroBatches:
    """The micro-batches of a whole run.

    Args:
        samples: distinct encoded rows.
        rows: int32[N], the sample number of each data row; an epoch contains each row `repeat` times.
        rehearsal: int32[M], the numbers of the rehearsal samples; an epoch draws `ratio` of them for each data row.
        micro_batch: sequences in a micro-batch, each of at most `max_length` tokens.
        packing: None for one row in a sequence; isolated for complete rows that attend only to themselves; xtuner for
            rows concatenated and cut as by XTuner with `workers` processes, once for all epochs.
        epochs: passes over the data; None if `limit` is set.
        limit: number of all micro-batches; None if `epochs` is set.
    """

    samples: Sequence[EncodedSample]
    rows: NDArray[np.int32]
    rehearsal: NDArray[np.int32]
    _: KW_ONLY
    repeat: int
    ratio: float
    micro_batch: int
    max_length: int
    packing: Literal["isolated", "xtuner"] | None
    workers: int
    pad_id: int
    seed: int
    epochs: float | None = None
    limit: int | None = None

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """int32[S], tokens of each sample."""
        return np.asarray([len(sample) for sample in self.samples], np.int32)

    def count(self) -> int:
        """Number of micro-batches in the whole run."""
        return self.limit if self.limit is not None else sum(1 for _ in self.packs())

    def stream(self, skip: int = 0) -> Iterator[Batch]:
        """The micro-batches in order. The first `skip` are not built."""
        for sequences in islice(self.sequences(), skip, None):
            yield collate(sequences, self.pad_id, isolated=self.packing != "xtuner")

    def sequences(self) -> Iterator[list[list[EncodedSample]]]:
        """The micro-batches before padding: for each sequence, the samples in it."""
        for packs in self.packs():
            yield [[self._cut_sample(piece) for piece in pack] for pack in packs]

    def packs(self) -> Iterator[list[Pack]]:
        """The micro-batches as spans of samples."""
        return islice(self._all_packs(), self.limit)

    def _cut_sample(self, piece: Span) -> EncodedSample:
        sample, tokens = self.samples[piece.sample], slice(piece.start, piece.end)
        if piece.end - piece.start == len(sample):
            return sample
        return replace(sample, ids=sample.ids[tokens], loss_mask=sample.loss_mask[tokens])

    def _all_packs(self) -> Iterator[list[Pack]]:
        cut = None
        if self.packing == "xtuner":
            rows = self._epoch_rows(np.random.default_rng(self.seed))
            cut = ConcatThenSplitPacks(self.lengths, rows, self.max_length, self.workers)
        epoch, left = 0, self.epochs
        while left is None or left > 0:
            rng = np.random.default_rng((self.seed, epoch))
            share = 1.0 if left is None else min(left, 1.0)
            yield from self._micro_batches(rng, share) if cut is None else self._shuffled(cut, rng, share)
            epoch += 1
            left = None if left is None else round(left - 1, 9)

    def _epoch_rows(self, rng: np.random.Generator) -> NDArray[np.int32]:
        rows = np.tile(self.rows, self.repeat)
        if len(self.rehearsal) and (wanted := round(self.ratio * len(rows))):
            copies = -(-wanted // len(self.rehearsal))
            drawn = np.concatenate([rng.permutation(self.rehearsal) for _ in range(copies)])[:wanted]
            rows = np.concatenate([rows, drawn])
        return rng.permutation(rows)

    def _micro_batches(self, rng: np.random.Generator, share: float) -> Iterator[list[Pack]]:
        rows = self._epoch_rows(rng)
        rows = rows[: max(1, round(share * len(rows)))]
        if self.packing is None:
            groups = group_by_length(self.lengths, rows, self.micro_batch, rng)
        else:
            packs = fill_packs(self.lengths, rows, self.max_length)
            groups = iter(lambda: list(islice(packs, self.micro_batch)), [])
        for group in groups:
            yield [tuple(Span(row, 0, int(self.lengths[row])) for row in pack) for pack in group]

    def _shuffled(self, packs: ConcatThenSplitPacks, rng: np.random.Generator, share: float) -> Iterator[list[Pack]]:
        order = rng.permutation(len(packs))[: max(1, round(share * len(packs)))]
        for start in range(0, len(order), self.micro_batch):
            yield [packs[number] for number in order[start : start + self.micro_batch].tolist()]
