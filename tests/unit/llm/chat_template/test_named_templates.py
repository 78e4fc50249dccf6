"""Named chat templates: ids and labels equal those of XTuner 0.2.0, and text cannot forge special tokens."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer
from xtuner_models import CHAT_NAMES, FIXTURES, write_tokenizer

from llm.chat_template.encoding import ChatTemplate
from llm.chat_template.named_templates import NAMED_TEMPLATES, named_template
from llm.chat_template.special_tokens import ESCAPE, SpecialTokenEscaper
from llm.internlm.tokenizer import build_tokenizer
from llm.loading import load_template
from tuning.data.conversation import Conversation, Turn, single_turn
from tuning.data.row_readers import read_row
from tuning.errors import ConfigError
from tuning.training.samples import IGNORE_INDEX, IMAGE_TOKEN_INDEX

LABELS = json.loads((FIXTURES / "labels.json").read_text(encoding="utf-8"))
STRINGS = json.loads((FIXTURES / "templates.json").read_text(encoding="utf-8"))["PROMPT_TEMPLATE"]
# Templates of models that transformers does not support.
UNSUPPORTED = {"moss_sft", "chatglm2", "chatglm3", "baichuan_chat", "baichuan2_chat", "deepseek_moe", "minicpm"}
OURS = {"internlm", "internlm_chat_0_1_9"}
PATCHES = 3
COLUMN = {"plain": "conversation", "openai": "messages", "llava": "conversations"}
SCHEMA = {"plain": "xtuner", "openai": "messages", "llava": "llava"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    families = {"internlm": "internlm_v1", "internlm2": "internlm2_chat"}
    return {name: write_tokenizer(root / name, family) for name, family in families.items()}


@cache
def tokenizer(folder: Path):
    return build_tokenizer(folder)


def is_compared(row) -> bool:
    return row["max_length"] == 2048 and row["template"] in NAMED_TEMPLATES


@pytest.mark.parametrize("name", sorted(STRINGS))
def test_named_templates_equal_those_of_xtuner(name):
    if name in UNSUPPORTED:
        assert name not in NAMED_TEMPLATES
        return
    theirs, ours = STRINGS[name], named_template(name)
    given = (theirs["SYSTEM"], theirs["INSTRUCTION"], theirs.get("SUFFIX", ""), theirs.get("SEP", ""))
    assert (ours.system, ours.question, ours.suffix, ours.separator) == given
    assert ours.suffix_ends == theirs.get("SUFFIX_AS_EOS", False)
    assert set(NAMED_TEMPLATES) - set(STRINGS) == OURS


@pytest.mark.parametrize(
    "row",
    [row for row in LABELS["rows"] if is_compared(row)],
    ids=lambda row: f"{row['template']}-{row['tokenizer']}-{row['kind']}-{row['conversation']}",
)
def test_ids_and_labels_equal_those_of_xtuner(folders, row):
    messages = LABELS["conversations"][row["kind"]][row["conversation"]]
    value = {COLUMN[row["kind"]]: messages}
    if row["kind"] == "llava" and IMAGE_TOKEN_INDEX in row["input_ids"]:
        value["image"] = "a.jpg"
    if row["conversation"] == "two_questions":  # our readers join these with a newline and report it
        conversation = Conversation(tuple(Turn(turn["role"], turn["content"]) for turn in messages))
    else:
        conversation, _ = read_row(value, SCHEMA[row["kind"]])
    assert conversation is not None
    patches = PATCHES if row["kind"] == "llava" else 0
    template = ChatTemplate(tokenizer(folders[row["tokenizer"]]), None, patches, NAMED_TEMPLATES[row["template"]])
    sample = template.encode(conversation, 4096, keep_separator=True)
    ids, labels = _with_patches(row["input_ids"], row["labels"])
    assert sample.ids.tolist() == ids
    assert np.where(sample.loss_mask, sample.ids, IGNORE_INDEX).tolist() == labels
    shorter = template.encode(conversation, 4096)  # tokens after the last answer have no loss
    assert shorter.ids.tolist() == ids[: len(shorter)] and set(labels[len(shorter) :]) <= {IGNORE_INDEX}


def _with_patches(ids, labels):
    """XTuner encodes a picture as one image token and expands it to patches later."""
    pairs = [
        pair for pair in zip(ids, labels, strict=True) for _ in range(PATCHES if pair[0] == IMAGE_TOKEN_INDEX else 1)
    ]
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def test_internlm_chat_0_1_9_template_starts_every_round_with_bos(folders):
    template = ChatTemplate(tokenizer(folders["internlm"]), None, 0, NAMED_TEMPLATES["internlm_chat_0_1_9"])
    row = Conversation((*single_turn("a", "b").turns, *single_turn("c", "d").turns))
    text = template.tokenizer.decode(template.encode(row, 100).ids)
    assert text == "<s><|User|>:a<eoh>\n<|Bot|>:b</s><s><|User|>:c<eoh>\n<|Bot|>:d</s>"


plain = st.text(st.characters(codec="utf-8", exclude_characters="\ufdd0\r"), min_size=1, max_size=20).filter(str.strip)
marks = st.sampled_from(["<|im_start|>", "<|im_end|>", "</s>", "<s>", "[UNUSED_TOKEN_146]", "<|im_end|>\n"])
forged = st.lists(st.one_of(plain, marks), min_size=1, max_size=5).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(turns=st.lists(st.tuples(plain, plain), min_size=1, max_size=3), system=st.one_of(st.none(), plain))
@pytest.mark.parametrize("name", ["internlm2_chat", "default", "internlm", "qwen_chat", "internlm_chat_0_1_9"])
def test_saved_jinja_template_equals_the_named_template(folders, name, turns, system):
    family = "internlm" if name.startswith("internlm") and name != "internlm2_chat" else "internlm2"
    named = ChatTemplate(tokenizer(folders[family]), system, 0, NAMED_TEMPLATES[name])
    row = Conversation(tuple(turn for pair in turns for turn in single_turn(*pair).turns))
    asked = Conversation((*row.turns, Turn("user", "?")))
    ours, prompt = named.encode(row, 4096), named.prompt(asked)
    jinja = ChatTemplate(named.tokenizer, system)  # `named` has set the Jinja template of the tokenizer
    theirs = jinja.encode(row, 4096)
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.loss_mask.tolist() == theirs.loss_mask.tolist()
    assert prompt == jinja.prompt(asked)
    assert named.stop_ids == jinja.stop_ids


@settings(max_examples=100, deadline=None)
@given(asked=forged, answered=forged, system=forged)
def test_text_cannot_forge_special_tokens(folders, asked, answered, system):
    """The only special tokens are those of the template; special tokens in a text are encoded as plain text."""
    for named in (None, NAMED_TEMPLATES["internlm2_chat"]):
        template = ChatTemplate(tokenizer_with_jinja_template(folders["internlm2"]), system, 0, named)
        ids = template.encode(single_turn(asked, answered), 4096).ids.tolist()
        special = [index for index in ids if index in template.tokenizer.all_special_ids or index >= 92538]
        text = ["<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"]
        assert template.tokenizer.convert_ids_to_tokens(special) == text
        assert template.tokenizer.decode(ids).count(asked) >= 1


def tokenizer_with_jinja_template(folder: Path):
    fresh = tokenizer(folder)
    fresh.chat_template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    return fresh


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.one_of(plain, st.sampled_from(CHAT_NAMES)), max_size=6).map("".join))
def test_escaper_finds_special_tokens_like_the_tokenizer(folders, text):
    escaper = SpecialTokenEscaper(tokenizer(folders["internlm2"]))
    expected = tokenizer(folders["internlm2"])(text, add_special_tokens=False)["input_ids"]
    assert escaper.tokenize(text + ESCAPE) == expected  # a text with an escape is split at its special tokens
    assert escaper.tokenize(escaper.escape("")) == []


def test_image_token_is_special_only_in_image_templates():
    words = make_tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<image>"]})
    row = Conversation((Turn("user", "<image>\nwho"), Turn("assistant", "you")), ("a.jpg",))
    assert ChatTemplate(words, None, PATCHES).encode(row, 100).ids.tolist().count(IMAGE_TOKEN_INDEX) == PATCHES
    text_only = ChatTemplate(words, None).encode(row, 100).ids.tolist()
    assert IMAGE_TOKEN_INDEX not in text_only
    assert words.convert_tokens_to_ids("<image>") not in text_only


def test_unknown_template_name_lists_the_known_names():
    with pytest.raises(ConfigError, match=r"template: internlm9: .* internlm2_chat"):
        named_template("internlm9")


def test_checkpoint_without_a_chat_template_gets_the_named_template_of_its_family(tmp_path):
    write_tokenizer(tmp_path, "internlm_v1")
    (tmp_path / "config.json").write_text('{"model_type": "internlm"}')
    (tmp_path / "model.safetensors").touch()
    template = load_template(str(tmp_path), None)
    assert template.tokenizer.decode(template.prompt(single_turn("你好"))) == "<s><|User|>:你好\n<|Bot|>:"
    assert template.stop_ids[0] == 103028
