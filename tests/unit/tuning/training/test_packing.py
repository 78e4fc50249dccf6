"""Packing: each epoch has every row once, and no pack exceeds the maximum length; XTuner's packs stay equal."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tuning.training.packing import MicroBatches, fill_packs, group_by_length
from tuning.training.samples import IGNORE_INDEX, EncodedSample, collate

lengths = st.lists(st.integers(1, 50), min_size=1, max_size=300)


def sample(length: int, learned: int = 1) -> EncodedSample:
    return EncodedSample(np.arange(length, dtype=np.int32), np.arange(length) >= length - learned, f"row of {length}")


def batches(rows: int, **changes) -> MicroBatches:
    samples = [sample(5 + index) for index in range(rows)] + [sample(40)]
    options = {
        "repeat": 1,
        "ratio": 0.0,
        "micro_batch": 2,
        "max_length": 64,
        "packing": None,
        "workers": 1,
        "pad_id": 0,
        "seed": 0,
        "epochs": 1,
    }
    return MicroBatches(samples, np.arange(rows, dtype=np.int32), np.asarray([rows], np.int32), **(options | changes))


def sample_counts(source: MicroBatches) -> Counter:
    return Counter(piece.sample for packs in source.packs() for pack in packs for piece in pack)


@settings(deadline=None)
@given(lengths)
def test_packs_contain_every_row_once_and_respect_max_length(sizes):
    rows = np.random.default_rng(0).permutation(len(sizes)).astype(np.int32)
    packs = list(fill_packs(np.asarray(sizes, np.int32), rows, 50))
    assert sorted(row for pack in packs for row in pack) == list(range(len(sizes)))
    assert all(sum(sizes[row] for row in pack) <= 50 for pack in packs)


def test_packing_wastes_less_than_5_percent():
    sizes = np.random.default_rng(0).integers(30, 60, 2000).astype(np.int32)
    packs = list(fill_packs(sizes, np.arange(2000, dtype=np.int32), 1024))
    assert sum(sizes) / (len(packs) * 1024) > 0.95


@settings(deadline=None)
@given(lengths, st.integers(1, 5))
def test_group_by_length_contains_every_row_once(sizes, micro_batch):
    rows = np.arange(len(sizes), dtype=np.int32)
    groups = list(group_by_length(np.asarray(sizes, np.int32), rows, micro_batch, np.random.default_rng(0)))
    assert sorted(row for group in groups for (row,) in group) == list(range(len(sizes)))
    assert all(len(group) <= micro_batch for group in groups)


def test_epoch_contains_each_row_repeat_times_and_rehearsal_rows_by_ratio():
    assert sample_counts(batches(10, repeat=3)) == Counter(dict.fromkeys(range(10), 3))
    assert sample_counts(batches(10, repeat=2, ratio=0.5)) == Counter(dict.fromkeys(range(10), 2) | {10: 10})
    assert sample_counts(batches(10, epochs=2.5)).total() == 25
    assert sample_counts(batches(10, ratio=0.0))[10] == 0


def test_repeat_does_not_copy_samples():
    source = batches(1, repeat=10_000, packing="isolated")
    assert len(source.samples) == 2
    assert sample_counts(source) == Counter({0: 10_000})


def test_order_depends_only_on_seed_and_epoch_and_not_on_skip():
    plan = list(batches(20, epochs=2).packs())
    assert plan == list(batches(20, epochs=2).packs())
    assert plan != list(batches(20, epochs=2, seed=1).packs())
    assert plan[:10] != plan[10:]
    whole, late = list(batches(20).stream()), list(batches(20).stream(skip=7))
    assert [batch.where for batch in whole[7:]] == [batch.where for batch in late]


def test_xtuner_packs_are_built_once_and_shuffled_every_epoch():
    source = batches(40, packing="xtuner", workers=3, epochs=3, micro_batch=1)
    plan = [packs[0] for packs in source.packs()]
    epochs = [plan[at : at + len(plan) // 3] for at in range(0, len(plan), len(plan) // 3)]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    whole, late = list(source.stream()), list(source.stream(skip=7))
    assert [batch.where for batch in whole[7:]] == [batch.where for batch in late]
    assert all(batch.num_tokens <= 64 for batch in whole)


def test_unpacked_rows_give_one_iteration_each():
    assert batches(6, repeat=200, micro_batch=1).count() == 1200


def test_rehearsal_rows_are_sampled_once_for_xtuner_packs():
    source = batches(30, packing="xtuner", ratio=0.5, repeat=4, epochs=2)
    packed = sum(piece.end - piece.start for packs in source.packs() for pack in packs for piece in pack)
    assert packed == 2 * ((4 * sum(range(5, 35)) + 60 * 40) // 64 * 64)


def test_limit_spans_epochs():
    assert batches(10, epochs=None, limit=17).count() == 17 == len(list(batches(10, epochs=None, limit=17).stream()))


def test_collate_masks_padding_and_restarts_positions_for_each_packed_row():
    batch = collate([[sample(3), sample(2)], [sample(8, 2)]], pad_id=7)
    assert batch.input_ids.tolist()[0] == [0, 1, 2, 0, 1, 7, 7, 7]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], list(range(8))]
    assert batch.labels.tolist()[0] == [
        IGNORE_INDEX,
        IGNORE_INDEX,
        2,
        IGNORE_INDEX,
        1,
        IGNORE_INDEX,
        IGNORE_INDEX,
        IGNORE_INDEX,
    ]
    assert batch.labels.tolist()[1][-2:] == [6, 7]
    assert (batch.num_tokens, batch.num_labels) == (13, 4)
    assert batch.without_labels().num_labels == 0


def test_collate_gives_xtuner_packs_continuous_positions():
    batch = collate([[sample(3), sample(2)], [sample(8, 2)]], pad_id=7, isolated=False)
    assert batch.position_ids.tolist() == [list(range(8)), list(range(8))]
    assert batch.input_ids.tolist()[0] == [0, 1, 2, 0, 1, 7, 7, 7]
