"""VisionLanguageModel: image features in the embeddings, gradients of the projector, packing, answers."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_tokenizer
from torch import nn
from transformers import LlamaForCausalLM

from llm.chat_template.encoding import ChatTemplate
from llm.dataset import encode_row
from llm.generation import generate_answers
from llm.loading import load_template
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn
from tuning.data.formats import SourceRow
from tuning.settings import Data
from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX, EncodedSample, collate
from vlm.model import VisionLanguageModel, insert_image_features
from vlm.projector import Projector, load_projector, new_projector, save_projector

PATCHES, WIDTH = 3, 8
TABLE = torch.randn(4, PATCHES, WIDTH, generator=torch.Generator().manual_seed(0))


class RandomFeatures(nn.Module):
    """Random features of four pictures; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, pictures: Sequence[int]) -> torch.Tensor:
        self.calls += 1
        return TABLE[list(pictures)].half()


@pytest.fixture
def vlm(tiny_model: Path) -> VisionLanguageModel:
    language = LlamaForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).requires_grad_(False)
    return VisionLanguageModel(language, new_projector(WIDTH, 64, 0), RandomFeatures(), torch.float32).eval()


@pytest.fixture
def template(tiny_model: Path) -> ChatTemplate:
    return load_template(str(tiny_model), None, PATCHES)


def image_row(question: str, answer: str, *images: str) -> SourceRow:
    turns = (Turn("user", f"{DEFAULT_IMAGE_TOKEN}\n" * len(images) + question), Turn("assistant", answer))
    return SourceRow("row 1", Conversation(turns, images))


def encoded(template: ChatTemplate, *rows: SourceRow, max_length: int = 400) -> list[EncodedSample]:
    data = Data(files=(Path("rows.jsonl"),), max_length=max_length)
    return [encode_row(row, template, data, lambda image, _: int(image)) for row in rows]


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_features_replace_exactly_the_image_tokens(rows: list[list[bool]]) -> None:
    width = max(map(len, rows)) * PATCHES
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    for line, marks in zip(ids, rows, strict=True):
        for place, mark in enumerate(marks):
            line[place * PATCHES : (place + 1) * PATCHES] = IMAGE_TOKEN_INDEX if mark else 5
    pictures = sum(map(sum, rows))
    features = torch.arange(pictures * PATCHES, dtype=torch.float32)[:, None].expand(-1, 2) + 100
    spliced = insert_image_features(torch.zeros(*ids.shape, 2), ids, features.reshape(pictures, PATCHES, 2))
    assert torch.equal(spliced[ids == IMAGE_TOKEN_INDEX], features), "in order, row by row"
    assert not spliced[ids != IMAGE_TOKEN_INDEX].any()


def test_each_image_becomes_one_token_for_each_patch(template: ChatTemplate) -> None:
    (sample,) = encoded(template, image_row("what colour?", "red.", "2", "0"))
    assert (sample.ids == IMAGE_TOKEN_INDEX).sum() == 2 * PATCHES
    assert not sample.loss_mask[sample.ids == IMAGE_TOKEN_INDEX].any()
    assert sample.picture_ids == (2, 0)
    (plain,) = encoded(template, image_row("what colour?", "red."))
    text = make_tokenizer().decode(sample.ids[sample.ids != IMAGE_TOKEN_INDEX])
    assert text.replace("\n\nwhat", "what") == make_tokenizer().decode(plain.ids)


def test_truncation_drops_pictures_too(template: ChatTemplate) -> None:
    turns = (
        Turn("user", f"{DEFAULT_IMAGE_TOKEN}\nwho?"), Turn("assistant", "one"),
        Turn("user", f"{DEFAULT_IMAGE_TOKEN}\nwho?"), Turn("assistant", "two " * 50),
    )  # fmt: skip
    (sample,) = encoded(template, SourceRow("row 1", Conversation(turns, ("3", "1"))), max_length=60)
    assert sample.truncated
    assert sample.picture_ids == (3,)
    assert (sample.ids == IMAGE_TOKEN_INDEX).sum() == PATCHES


def test_batches_keep_pictures_in_the_order_of_their_patches(template: ChatTemplate) -> None:
    samples = encoded(template, image_row("a?", "b", "3"), image_row("a?", "b"), image_row("a?", "b", "1", "2"))
    batch = collate([[samples[0], samples[1]], [samples[2]]], 0)
    assert batch.picture_ids == (3, 1, 2)
    assert batch.without_labels().picture_ids == batch.to(torch.device("cpu")).picture_ids == (3, 1, 2)


def test_the_loss_covers_only_the_answers(vlm: VisionLanguageModel, template: ChatTemplate) -> None:
    (sample,) = encoded(template, image_row("what colour?", "red.", "1"))
    batch = collate([[sample]], 0)
    loss, labels = vlm(batch)
    assert int(labels) == int(sample.loss_mask.sum())
    embeddings = vlm.embed(batch.input_ids, batch.picture_ids)
    log = vlm.language(inputs_embeds=embeddings).logits.log_softmax(-1)[0, :-1]
    targets = batch.labels[0, 1:]
    kept = targets != IGNORE_INDEX
    assert float(loss) == pytest.approx(-float(log[kept].gather(1, targets[kept, None]).sum()), rel=1e-5)


def test_packed_equals_unpacked(vlm: VisionLanguageModel, template: ChatTemplate) -> None:
    samples = encoded(
        template, image_row("a?", "one.", "0"), image_row("b?", "two."), image_row("c?", "three.", "2", "1")
    )
    together, _ = vlm(collate([samples], 0))
    alone = sum(float(vlm(collate([[sample]], 0))[0]) for sample in samples)
    assert float(together) == pytest.approx(alone, rel=1e-4)


def test_a_row_without_pictures_skips_the_tower_and_gives_every_parameter_a_gradient(
    vlm: VisionLanguageModel, template: ChatTemplate
) -> None:
    (sample,) = encoded(template, image_row("who?", "me."))
    alone, _ = vlm(collate([[sample]], 0))
    vlm.train()
    loss, _ = vlm(collate([[sample]], 0))
    assert float(loss) == pytest.approx(float(alone))
    assert isinstance(vlm.features, RandomFeatures)
    assert vlm.features.calls == 0
    vlm.language.get_input_embeddings().requires_grad_(True)
    vlm(collate([[sample]], 0))[0].backward()
    assert all(parameter.grad is not None for parameter in vlm.projector.parameters())
    assert not any(parameter.grad.any() for parameter in vlm.projector.parameters())


def test_answers_depend_on_the_picture_but_not_on_the_batch(vlm: VisionLanguageModel, template: ChatTemplate) -> None:
    nn.init.normal_(vlm.projector.linear_2.weight, std=2.0)

    def embed(ids: torch.Tensor, conversations: Sequence[Conversation]) -> torch.Tensor:
        return vlm.embed(ids, [int(image) for each in conversations for image in each.images])

    asked = [image_row("what?", "", image).conversation for image in "0123"] + [
        image_row("who are you?", "").conversation
    ]
    asked = [Conversation(each.turns[:-1], each.images) for each in asked]
    batched = generate_answers(vlm.language, template, asked, 12, embed=embed)
    alone = [generate_answers(vlm.language, template, [each], 12, embed=embed)[0] for each in asked]
    assert batched == alone
    assert len({answer.text for answer in batched[:4]}) > 1
    text_only = generate_answers(vlm.language, template, asked[-1:], 12)
    assert text_only == batched[-1:]


def test_a_saved_projector_loads_unchanged(tmp_path: Path) -> None:
    one, other = new_projector(WIDTH, 16, 1), Projector(WIDTH, 16)
    save_projector(one, tmp_path)
    first = (tmp_path / "projector.safetensors").read_bytes()
    load_projector(other, tmp_path)
    features = torch.randn(2, PATCHES, WIDTH)
    assert torch.equal(one(features), other(features))
    save_projector(other, tmp_path)
    assert (tmp_path / "projector.safetensors").read_bytes() == first
    assert torch.equal(new_projector(WIDTH, 16, 1).linear_1.weight, one.linear_1.weight)
