"""`data inspect` shows the text that the model gets; text of a dataset cannot control terminal or page."""

import re
from pathlib import Path
from typing import Any

import pytest

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import Conversation, Turn, single_turn
from tuning.data.formats import SourceRow
from twinlens.inspection import (
    TextSpan,
    detect_language,
    first_distinct,
    render_html,
    summarize_dataset,
    view_tokens,
    view_turns,
    visible_controls,
)

CHAT = Conversation(
    (
        Turn("system", "Be kind 😊."),
        Turn("user", "你是谁?"),
        Turn("assistant", "我是 Lumo 🦙👩‍🚀.", loss=False),
        Turn("user", "Sure?"),
        Turn("assistant", "Yes, naïve 朋友 🎉!"),
    )
)


def source(*conversations: Conversation) -> list[SourceRow]:
    return [SourceRow(f"a.jsonl, line {number}", each) for number, each in enumerate(conversations, 1)]


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> ChatTemplate:
    return ChatTemplate(tokenizer, None)


def test_pieces_are_the_model_text_with_answers_marked(template: ChatTemplate) -> None:
    view = view_tokens(source(CHAT)[0], template, 2048)
    text = "".join(piece.text for piece in view.pieces)
    assert text == (
        "<|im_start|>system\nBe kind 😊.<|im_end|>\n<|im_start|>user\n你是谁?<|im_end|>\n"
        "<|im_start|>assistant\n我是 Lumo 🦙👩‍🚀.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n"
        "<|im_start|>assistant\nYes, naïve 朋友 🎉!<|im_end|>"
    )
    assert [piece.text for piece in view.pieces if piece.supervised] == ["Yes, naïve 朋友 🎉!<|im_end|>"]
    assert "\ufffd" not in text and not view.remark


def test_a_row_over_the_limit_has_a_remark(template: ChatTemplate) -> None:
    twice = Conversation((*single_turn("one", "two").turns, *single_turn("three " * 40, "two").turns))
    (row,) = source(twice)
    cut = view_tokens(row, template, 40)
    assert "cut after the last whole answer" in cut.remark
    assert [piece.text for piece in cut.pieces if piece.supervised] == ["two<|im_end|>"]
    none = view_tokens(row, template, 8)
    assert "no whole answer fits into 8 tokens" in none.remark
    assert sum(piece.supervised for piece in none.pieces) == 2


def test_summary_counts(tmp_path: Path, template: ChatTemplate) -> None:
    (tmp_path / "here.jpg").touch()
    pictured = Conversation(single_turn("<image>\nWhat?", "That.").turns, ("here.jpg",))
    lost = Conversation(single_turn("<image>\nWhat?", "This.").turns, ("lost.jpg",))
    rows = source(CHAT, CHAT, pictured, lost, single_turn("Hi", "Hello " * 100))
    summary = summarize_dataset(rows, tmp_path, 100, template)
    assert (summary.rows, summary.distinct, summary.questions, summary.turns) == (5, 4, 3, 16)
    assert (summary.answers, summary.masked_answers) == (7, 2)
    assert (summary.pictures, summary.missing) == (2, ("lost.jpg",))
    assert summary.languages == {"en": 3, "zh": 2}
    sizes = sorted(len(template.encode(row.conversation, 10_000)) for row in rows)
    lengths = summary.lengths
    assert (lengths.shortest, lengths.median, lengths.p95, lengths.longest) == (sizes[0], sizes[2], sizes[4], sizes[4])
    assert lengths.over == sum(size > 100 for size in sizes)
    assert summarize_dataset(rows, tmp_path, 100, None).lengths.over is None


def test_language_is_detected_from_letters() -> None:
    assert detect_language(single_turn("你是 Lumo 吗", "是的, I am")) == "zh"
    assert detect_language(single_turn("Was ist das?", "Ein Käse.")) == "en"
    assert detect_language(single_turn("1 + 1", "2")) == "other"
    assert detect_language(single_turn("Кто ты?", "Я Люмо.")) == "other"


def test_shown_rows_are_distinct() -> None:
    other = single_turn("a", "b")
    assert [row.where for row in first_distinct(source(CHAT, CHAT, other, single_turn("c", "d")), 2)] == [
        "a.jsonl, line 1",
        "a.jsonl, line 3",
    ]
    assert first_distinct(source(CHAT), 0) == []


def test_without_a_model_turns_are_shown_with_their_loss() -> None:
    view = view_turns(source(CHAT)[0])
    assert [piece for piece in view.pieces if piece.supervised] == [TextSpan("Yes, naïve 朋友 🎉!", True)]


def test_page_is_self_contained_and_escaped() -> None:
    rows = source(single_turn("<script>alert(1)</script>", "</mark><img src=x onerror=alert(1)>"))
    summary = summarize_dataset(rows, Path(), 2048, None)
    page = render_html("<b>.jsonl", summary, ["ignored key '<i>' (1 rows)"], [view_turns(row) for row in rows])
    assert not re.search(r"<(script|img|link|b|i)\b", page)
    assert "<mark>&lt;/mark&gt;&lt;img src=x onerror=alert(1)&gt;</mark>" in page
    assert not re.search(r"https?://", page)


def test_control_characters_cannot_reach_the_terminal() -> None:
    assert visible_controls("a\x1b[31mb\x07\x9b\x7f\tc\n你😊") == "a␛[31mb␇\ufffd␡\tc\n你😊"
