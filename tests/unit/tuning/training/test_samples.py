"""Picture ids of a batch: all pictures, in the order of their patches."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX, EncodedSample, collate

PATCHES = 3
PAD = 7


def sample(pictures: list[int], words: int) -> EncodedSample:
    """The patches and one token for each picture, then tokens in the loss mask."""
    ids = [value for _ in pictures for value in (*[IMAGE_TOKEN_INDEX] * PATCHES, 1)] + [2] * words
    return EncodedSample(
        np.array(ids, np.int32), np.array(ids) == 2, f"row of {len(pictures)}", picture_ids=tuple(pictures)
    )


samples = st.builds(sample, st.lists(st.integers(0, 9), max_size=3), st.integers(1, 5))


@given(st.lists(st.lists(samples, min_size=1, max_size=3), min_size=1, max_size=4))
def test_picture_ids_have_the_order_of_their_patches(packs: list[list[EncodedSample]]) -> None:
    batch = collate(packs, PAD)
    assert batch.picture_ids == tuple(number for pack in packs for each in pack for number in each.picture_ids)
    assert int((batch.input_ids == IMAGE_TOKEN_INDEX).sum()) == PATCHES * len(batch.picture_ids)
    for row, pack in enumerate(packs):
        inside = sum(len(each.picture_ids) for each in pack)
        assert int((batch.input_ids[row] == IMAGE_TOKEN_INDEX).sum()) == PATCHES * inside
    assert not (batch.labels == IMAGE_TOKEN_INDEX).any(), "patches have no labels"


@given(st.lists(st.lists(samples, min_size=1, max_size=2), min_size=1, max_size=3))
def test_batch_without_labels_keeps_picture_ids_and_input_ids(packs: list[list[EncodedSample]]) -> None:
    batch = collate(packs, PAD)
    unlabeled = batch.without_labels()
    assert unlabeled.picture_ids == batch.picture_ids
    assert torch.equal(unlabeled.input_ids, batch.input_ids)
    assert (unlabeled.labels == IGNORE_INDEX).all()
    assert (unlabeled.num_labels, unlabeled.num_tokens) == (0, 0)


def test_picture_ids_are_copied_to_another_device() -> None:
    batch = collate([[sample([4, 2], 2)], [sample([], 1)]], PAD)
    assert batch.to(torch.device("cpu")).picture_ids == (4, 2)


def test_text_row_has_no_picture_ids() -> None:
    assert collate([[EncodedSample(np.array([1, 2], np.int32), np.array([False, True]))]], PAD).picture_ids == ()
