"""What a batch knows of its pictures: every one, in the order of its patches."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuning.training.samples import IGNORED, PATCH, EncodedSample, collate

PATCHES = 3
PAD = 7


def sample(pictures: list[int], words: int) -> EncodedSample:
    """Each picture as its patches and a word behind it, then words that are learned."""
    ids = [value for _ in pictures for value in (*[PATCH] * PATCHES, 1)] + [2] * words
    return EncodedSample(
        np.array(ids, np.int32), np.array(ids) == 2, f"row of {len(pictures)}", pictures=tuple(pictures)
    )


samples = st.builds(sample, st.lists(st.integers(0, 9), max_size=3), st.integers(1, 5))


@given(st.lists(st.lists(samples, min_size=1, max_size=3), min_size=1, max_size=4))
def test_pictures_keep_the_order_of_their_patches(packs: list[list[EncodedSample]]) -> None:
    batch = collate(packs, PAD)
    assert batch.pictures == tuple(number for pack in packs for each in pack for number in each.pictures)
    assert int((batch.input_ids == PATCH).sum()) == PATCHES * len(batch.pictures)
    for row, pack in enumerate(packs):
        inside = sum(len(each.pictures) for each in pack)
        assert int((batch.input_ids[row] == PATCH).sum()) == PATCHES * inside
    assert not (batch.labels == PATCH).any(), "patches are never learned"


@given(st.lists(st.lists(samples, min_size=1, max_size=2), min_size=1, max_size=3))
def test_a_silenced_batch_keeps_its_pictures_and_learns_nothing(packs: list[list[EncodedSample]]) -> None:
    batch = collate(packs, PAD)
    silent = batch.silenced()
    assert silent.pictures == batch.pictures
    assert torch.equal(silent.input_ids, batch.input_ids)
    assert (silent.labels == IGNORED).all()
    assert (silent.labelled, silent.tokens) == (0, 0)


def test_pictures_go_along_to_another_device() -> None:
    batch = collate([[sample([4, 2], 2)], [sample([], 1)]], PAD)
    assert batch.to(torch.device("cpu")).pictures == (4, 2)


def test_a_row_of_text_has_no_pictures() -> None:
    assert collate([[EncodedSample(np.array([1, 2], np.int32), np.array([False, True]))]], PAD).pictures == ()
