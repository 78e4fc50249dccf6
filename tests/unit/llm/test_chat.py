"""Streamed pieces contain every character of the answer once and never split one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from llm.chat import Chat, TextStream
from llm.chat_template.encoding import ChatTemplate
from llm.generation import Sampling, generate_answers
from llm.loading import load_model, load_template
from tuning.data.conversation import single_turn
from tuning.settings import Quant

TEMPLATE = ChatTemplate(make_tokenizer(), None)
texts = st.text(min_size=1, max_size=40).filter(lambda text: "<" not in text and "\ufffd" not in text)


@settings(max_examples=200, deadline=None)
@given(st.one_of(texts, st.sampled_from(["👩‍🚀 到了", "a👍🏽b", "🇨🇳", "é\u0301"])))
def test_streamed_pieces_are_complete_characters_and_join_to_the_answer(text):
    pieces: list[str] = []
    stream = TextStream(TEMPLATE, pieces.append)
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for index in TEMPLATE.tokenizer(text, add_special_tokens=False)["input_ids"]:
        stream.put(torch.tensor([index]))
    stream.put(torch.tensor([TEMPLATE.stop_ids[0]]))
    stream.end()
    assert "".join(pieces) == text == stream.text
    assert all("\ufffd" not in piece and piece for piece in pieces)


def test_greedy_chat_repeats_its_first_answer_after_reset(tiny_model):
    template = load_template(str(tiny_model), None)
    loaded = load_model(str(tiny_model), template, Quant(bits=16), "cpu")
    chat = Chat(loaded.model, template, loaded.compute_dtype, Sampling(), 8)
    pieces: list[str] = []
    first = chat.reply("who are you?", pieces.append)
    assert "".join(pieces) == first
    chat.reply("who are you?", pieces.append)
    chat.reset()
    assert chat.reply("who are you?", pieces.append) == first


def test_batched_answers_equal_single_answers(tiny_model):
    template = load_template(str(tiny_model), None)
    loaded = load_model(str(tiny_model), template, Quant(bits=16), "cpu")
    asked = [single_turn(text) for text in ("who are you?", "yes", "tell me about the sea and the city", "你是谁")]
    batched = generate_answers(loaded.model, template, asked, 12)
    single = [generate_answers(loaded.model, template, [one], 12)[0] for one in asked]
    assert batched == single
