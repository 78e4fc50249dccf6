"""InternLM's tokenizers: ids equal those of the official classes, and decoding inverts encoding."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xtuner_models import FIXTURES, write_tokenizer

from llm.chat import TextStream
from llm.chat_template.encoding import ChatTemplate
from llm.chat_template.named_templates import NAMED_TEMPLATES
from llm.internlm.tokenizer import build_tokenizer, load_tokenizer
from tuning.errors import ModelError

FAMILIES = ("internlm_v1", "internlm2_base", "internlm2_chat")
GOLDENS = json.loads((FIXTURES / "tokens.json").read_text(encoding="utf-8"))
CASES = [(family, case) for family in FAMILIES for case in GOLDENS[family]]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: write_tokenizer(tmp_path_factory.mktemp("tokenizers") / family, family) for family in FAMILIES}


@cache
def built(folder: Path):
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("family", "case"), CASES, ids=lambda each: each if isinstance(each, str) else each["text"][:9]
)
def test_ids_and_decoded_text_equal_those_of_the_official_classes(folders, family, case):
    tokenizer = built(folders[family])
    assert tokenizer(case["text"], add_special_tokens=False)["input_ids"] == case["ids"]
    assert tokenizer(case["text"])["input_ids"] == [1, *case["ids"]]
    assert tokenizer.decode(case["ids"]) == case["text"]
    if "<eoh>" not in case["text"] or family != "internlm_v1":  # special here, plain pieces in the official class
        assert tokenizer.decode(case["ids"], skip_special_tokens=True).strip() == case["decode_skip_special"].strip()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60).filter(lambda text: "▁" not in text))
def test_decoding_inverts_encoding_for_every_text(folders, text):
    for family in ("internlm_v1", "internlm2_chat"):
        tokenizer = built(folders[family])
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_streamed_pieces_never_split_a_character(folders):
    template = ChatTemplate(built(folders["internlm2_chat"]), None, named=NAMED_TEMPLATES["internlm2_chat"])
    for case in GOLDENS["internlm2_chat"]:
        pieces: list[str] = []
        stream = TextStream(template, pieces.append)
        stream.put(torch.tensor([1]))
        ids = [index for index in case["ids"] if index not in template.tokenizer.all_special_ids]
        for index in ids:
            stream.put(torch.tensor([index]))
        stream.end()
        assert "".join(pieces) == template.tokenizer.decode(ids)
        assert not any("\ufffd" in piece for piece in pieces)


def test_saved_tokenizer_reloads_with_the_same_ids(folders, tmp_path):
    tokenizer = built(folders["internlm2_chat"])
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(tmp_path)
    for case in GOLDENS["internlm2_chat"]:
        assert again(case["text"])["input_ids"] == [1, *case["ids"]]
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 2)


def test_added_tokens_after_the_last_piece_keep_their_ids(folders, tmp_path):
    write_tokenizer(tmp_path, "internlm2_chat")
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    config["added_tokens_decoder"]["92544"] = {"content": "<image>", "special": True}
    file.write_text(json.dumps(config))
    tokenizer = build_tokenizer(tmp_path)
    assert tokenizer("<image>a", add_special_tokens=False)["input_ids"][0] == 92544
    assert len(tokenizer) == 92545


def test_tokenizer_family_is_read_from_the_model_config(tmp_path):
    write_tokenizer(tmp_path, "internlm2_base")
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "config.json").write_text('{"model_type": "internlm2"}')
    assert load_tokenizer(tmp_path)("请做一下自我介绍")["input_ids"] == [1, 60836, 60520, 68300, 88019]


@pytest.mark.parametrize("broken", [b"", b"not protobuf at all", b"\x00" * 100])
def test_broken_sentencepiece_file_is_refused(tmp_path, broken):
    write_tokenizer(tmp_path, "internlm2_chat")
    (tmp_path / "tokenizer.model").write_bytes(broken)
    with pytest.raises(ModelError, match=r"tokenizer\.model: not a .*sentencepiece model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ([], "must map ids to tokens"),
        ({"five": {"content": "<a>"}}, "must map ids to tokens"),
        ({"5": {}}, "must map ids to tokens"),
        ({"-1": {"content": "<a>"}}, "<a> cannot have the id -1"),
        ({"99999999": {"content": "<a>"}}, "<a> cannot have the id 99999999"),
    ],
)
def test_invalid_added_tokens_are_refused(tmp_path, added, reason):
    write_tokenizer(tmp_path, "internlm2_chat")
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens_decoder": added}))
    with pytest.raises(ModelError, match=reason):
        load_tokenizer(tmp_path)
