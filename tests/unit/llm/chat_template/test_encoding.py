"""The loss mask covers exactly the answers, for every text and every chat template."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, make_tokenizer
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import Conversation, Turn, single_turn
from tuning.errors import DataError, ModelError

text = st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "<|im" not in text and "\r" not in text)
turns = st.lists(st.tuples(text, text, st.booleans()), min_size=1, max_size=4)


def conversation(pairs) -> Conversation:
    messages = []
    for question, answer, loss in pairs:
        messages += [Turn("user", question), Turn("assistant", answer, loss)]
    return Conversation(tuple(messages))


@settings(max_examples=150, deadline=None)
@given(turns, st.one_of(st.none(), text))
def test_loss_mask_covers_exactly_the_answers_and_their_stop_tokens(pairs, system):
    template = ChatTemplate(make_tokenizer_once(), system)
    if not any(loss for _, _, loss in pairs):
        with pytest.raises(DataError, match="no answer is trained on"):
            template.encode(conversation(pairs), 10_000)
        return
    sample = template.encode(conversation(pairs), 10_000)
    runs, current = [], []
    for index, on in zip(sample.ids.tolist(), sample.loss_mask.tolist(), strict=True):
        if on:
            current.append(index)
        elif current:
            runs.append(current)
            current = []
    runs += [current] if current else []
    decoded = [template.tokenizer.decode(run) for run in runs]
    assert decoded == [f"{answer}<|im_end|>" for _, answer, loss in pairs if loss]


@settings(max_examples=60, deadline=None)
@given(turns, st.one_of(st.none(), text))
def test_decoded_ids_equal_the_rendered_template_up_to_the_last_stop_token(pairs, system):
    template = ChatTemplate(make_tokenizer_once(), system)
    pairs = [(question, answer, True) for question, answer, _ in pairs]
    sample = template.encode(conversation(pairs), 10_000)
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer, _ in pairs:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    rendered = template.tokenizer.apply_chat_template(messages, tokenize=False)
    assert template.tokenizer.decode(sample.ids) + "\n" == rendered  # tokens after the last answer are omitted


@settings(max_examples=60, deadline=None)
@given(turns)
def test_prompt_is_a_prefix_of_the_encoded_row(pairs):
    template = ChatTemplate(make_tokenizer_once(), "be brief")
    pairs = [(question, answer, True) for question, answer, _ in pairs]
    whole = conversation(pairs)
    prompt = template.prompt(Conversation(whole.turns[:-1]))
    assert template.encode(whole, 10_000).ids[: len(prompt)].tolist() == prompt


@settings(max_examples=60, deadline=None)
@given(turns, st.integers(8, 120))
def test_truncated_row_ends_with_a_complete_answer(pairs, max_length):
    template = ChatTemplate(make_tokenizer_once(), None)
    pairs = [(question, answer, True) for question, answer, _ in pairs]
    whole = template.encode(conversation(pairs), 10_000)
    try:
        sample = template.encode(conversation(pairs), max_length)
    except DataError:
        assert int(whole.loss_mask.argmin()) == 0
        return
    assert len(sample) <= max_length
    assert sample.ids.tolist() == whole.ids[: len(sample)].tolist()
    assert sample.ids[-1] == template.stop_ids[0]
    assert sample.truncated == (int(sample.loss_mask.sum()) < int(whole.loss_mask.sum()))


def make_tokenizer_once(_made=[]):  # noqa: B006 - hypothesis forbids function-scoped fixtures
    if not _made:
        _made.append(make_tokenizer())
    return _made[0]


def test_system_turn_of_the_row_overrides_the_system_prompt_of_the_task(tokenizer):
    template = ChatTemplate(tokenizer, "task")
    row = Conversation((Turn("system", "row"), Turn("user", "hi"), Turn("assistant", "yes")))
    decoded = tokenizer.decode(template.encode(row, 100).ids)
    assert "row" in decoded and "task" not in decoded


def test_default_system_prompt_of_the_template_is_reported():
    template = (
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nI am Somebody<|im_end|>\n{% endif %}" + CHATML
    )
    tokenizer = make_tokenizer(template)
    assert "I am Somebody" in str(ChatTemplate(tokenizer, None).default_system())
    assert ChatTemplate(tokenizer, "mine").default_system() is None
    assert ChatTemplate(make_tokenizer(), None).default_system() is None


def test_a_template_that_rewrites_earlier_answers_is_refused():
    rewriting = CHATML.replace(
        "{{ message['content'] }}", "{{ message['content'] if loop.last or message['role'] == 'user' else 'gone' }}"
    )
    row = conversation([("a", "b", True), ("c", "d", True)])
    with pytest.raises(ModelError, match="changes earlier turns"):
        ChatTemplate(make_tokenizer(rewriting), None).encode(row, 100, "file, row 1")


def test_eos_token_is_the_stop_token_of_a_template_without_one():
    plain = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    template = ChatTemplate(make_tokenizer(plain), None)
    sample = template.encode(single_turn("hi", "yes"), 100)
    assert template.stop_ids[0] == template.tokenizer.eos_token_id
    assert template.tokenizer.decode(sample.ids[sample.loss_mask]) == "yes</s>"


def test_loss_mask_is_exact_for_a_template_that_strips_answers():
    stripping = CHATML.replace("{{ message['content'] }}", "{{ message['content'] | trim }}")
    template = ChatTemplate(make_tokenizer(stripping), None)
    sample = template.encode(single_turn("hi", "  yes \n"), 100)
    assert template.tokenizer.decode(sample.ids[sample.loss_mask]) == "yes<|im_end|>"


def test_tokenizer_without_a_stop_token_is_refused():
    plain = make_tokenizer()
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), chat_template=plain.chat_template)
    with pytest.raises(ModelError, match="stop token"):
        ChatTemplate(bare, None)


def test_tokenizer_without_a_chat_template_is_refused():
    with pytest.raises(ModelError, match="no chat template"):
        ChatTemplate(make_tokenizer(None), None)


@pytest.mark.parametrize(
    "template",
    [
        "{% for x in %}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{% include '/etc/hostname' %}",
        "{{ ''.__class__.mro() }}",
    ],
)
def test_template_that_fails_is_refused(template):
    with pytest.raises(ModelError, match="chat template fails"):
        ChatTemplate(make_tokenizer(template), None)


def test_row_that_the_template_refuses_is_reported():
    picky = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"row 1: .* refuses these turns \(no system here\)"):
        row = Conversation((Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "yes")))
        ChatTemplate(make_tokenizer(picky), None).encode(row, 100, "row 1")
