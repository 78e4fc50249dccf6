"""XTuner's packing: concatenate rows, then split them at exactly max_length tokens."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BATCH = 1000  # rows per call of XTuner's packer: the default of datasets.map


class Span(NamedTuple):
    """Tokens `start` to `end` of the sample with number `sample`."""

    sample: int
    start: int
    end: int


Pack = tuple[Span, ...]  # the content of one sequence


def pack_boundaries(lengths: NDArray[np.int32], max_length: int, workers: int) -> NDArray[np.int64]:
    """int64[P, 2], the start and end of each pack among the tokens of all rows.

    The rows are divided into `workers` equal shares, and each share is packed separately, in batches of rows. After
    each batch, the tokens so far are cut into full packs, and the remainder goes to the next batch. If they do not
    fill a pack, they become one short pack. The remainder of a share is dropped (`Packer` in XTuner's
    dataset/utils.py, under datasets.map).

    Args:
        lengths: int32[N], N > 0, lengths of the rows in the order of packing.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    packs: list[tuple[int, int]] = []
    done = 0
    for share in np.array_split(np.arange(len(ends)), min(workers, len(ends))):
        for at in range(0, len(share), BATCH):
            last = int(ends[share[at : at + BATCH][-1]])
            whole = [(start, start + max_length) for start in range(done, last - max_length + 1, max_length)]
            packs += whole or [(done, last)]
            done = packs[-1][1]
        done = int(ends[share[-1]])
    return np.asarray(packs, np.int64)


class ConcatThenSplitPacks:
    """The packs of rows as a sequence; each pack is built on access.

    Args:
        lengths: int32[S], tokens of each sample.
        rows: int32[N], the sample number of each row, in the order of packing.
    """

    def __init__(self, lengths: NDArray[np.int32], rows: NDArray[np.int32], max_length: int, workers: int) -> None:
        self._rows = rows
        self._ends = np.cumsum(lengths[rows], dtype=np.int64)
        self._cuts = pack_boundaries(lengths[rows], max_length, workers)

    def __len__(self) -> int:
        return len(self._cuts)

    def __getitem__(self, number: int) -> Pack:
        start, end = self._cuts[number].tolist()
        first = int(np.searchsorted(self._ends, start, "right"))
        last = int(np.searchsorted(self._ends, end, "left"))
        pieces: list[Span] = []
        for row in range(first, last + 1):
            origin = int(self._ends[row - 1]) if row else 0
            piece_end = min(end, int(self._ends[row]))
            pieces.append(Span(int(self._rows[row]), max(start, origin) - origin, piece_end - origin))
        return tuple(pieces)
