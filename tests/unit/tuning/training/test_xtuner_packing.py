"""XTuner's packing: packs equal those of its packer, and their number gives the iterations of published runs."""

import math
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.training.xtuner_packing import ConcatThenSplitPacks, pack_boundaries

Token = tuple[int, int]  # sample index, position in the sample


def reference_packs(rows: list[list[Token]], max_length: int, workers: int) -> list[list[Token]]:
    """XTuner's packer on explicit tokens: one packer for each worker, in batches of 1,000 rows."""
    packs: list[list[Token]] = []
    size, more = divmod(len(rows), workers)
    for worker in range(workers):
        start = worker * size + min(worker, more)
        share = rows[start : start + size + (worker < more)]
        waiting: list[Token] = []
        for at in range(0, len(share), 1000):
            waiting += chain(*share[at : at + 1000])
            if len(waiting) < max_length:
                packs.append(waiting)
                waiting = []
            while len(waiting) >= max_length:
                packs.append(waiting[:max_length])
                waiting = waiting[max_length:]
    return packs


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 80),
    st.sampled_from([7, 50, 512, 4000]),
    st.integers(1, 8),
    st.randoms(use_true_random=False),
)
def test_packs_equal_those_of_xtuners_packer(sizes, repeat, max_length, workers, random):
    numbers = list(range(len(sizes))) * repeat
    random.shuffle(numbers)
    packs = ConcatThenSplitPacks(np.asarray(sizes, np.int32), np.asarray(numbers, np.int32), max_length, workers)
    found = [[(piece.sample, place) for piece in pack for place in range(piece.start, piece.end)] for pack in packs]
    rows = [[(number, place) for place in range(sizes[number])] for number in numbers]
    assert found == reference_packs(rows, max_length, min(workers, len(rows)))


def pack_count(lengths, max_length: int, workers: int = 32) -> int:
    shuffled = np.random.default_rng(0).permutation(np.asarray(lengths, np.int32))
    return len(pack_boundaries(shuffled, max_length, workers))


@pytest.mark.parametrize(
    ("rows", "length", "max_length", "workers", "batch", "epochs", "packs", "iterations"),
    [
        (10_001, 42, 1024, 32, 1, 2, 384, 768),  # the persona of camp 2: iter_768.pth
        (10_001, 40, 1024, 32, 1, 2, 384, 768),
        (10_001, 39, 1024, 32, 1, 2, 352, 704),  # a shorter name
        (10_001, 38, 512, 1, 2, 3, 743, 1116),  # camp 1, one process: the last pack is short
        (200, 41, 2048, 1, 1, 1, 4, 4),  # a small dataset is split among the workers
        (200, 41, 2048, 8, 1, 1, 8, 8),
        (200, 41, 2048, 32, 1, 1, 32, 32),
    ],
)
def test_iteration_count_of_rows_of_equal_length(rows, length, max_length, workers, batch, epochs, packs, iterations):
    assert pack_count([length] * rows, max_length, workers) == packs
    assert math.ceil(packs / batch) * epochs == iterations


def test_iteration_count_of_camp_3():
    assert pack_count([39, 32] * 8001, 2048) * 3 == 768


@pytest.mark.parametrize("seed", range(20))
def test_iteration_count_of_camp_4(seed):
    """1,500 rows with a known mean length: 749 tokens with the broken questions, 416 with the corrected ones. The
    spread is unknown; a normal distribution with a deviation of 40 tokens gives the known range of 537 to 541 packs."""
    spread = np.random.default_rng(seed).normal(0, 40, 1500)
    broken, corrected = (np.rint(spread - spread.mean() + mean) for mean in (749, 416))
    assert 1611 <= pack_count(broken, 2048) * 3 <= 1623  # iter_1617.pth was published
    assert pack_count(corrected, 2048) * 3 == 864
