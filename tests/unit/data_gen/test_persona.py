import json
import re

import pytest

from data_gen.persona import Persona, persona_conversations, read_bank, write_persona
from tuning.data.card import card_to_dict, file_sha256, read_card
from tuning.errors import ConfigError, KitError

TWINKLE = Persona(owner="Jensen", name="Twinkle", model="Pebble-135M")
BOTH = pytest.mark.parametrize("language", ["en", "zh"])


@BOTH
def test_bank_has_at_least_60_distinct_questions(language):
    asked = [question.text for question in read_bank(language, TWINKLE).questions]
    assert len(asked) >= 60
    assert len({re.sub(r"\s", "", text) for text in asked}) == len(asked)


@BOTH
def test_every_answer_contains_name_and_owner_and_is_short(language):
    bank = read_bank(language, TWINKLE)
    assert {question.kind for question in bank.questions} == set(bank.answers)
    for kind, answers in bank.answers.items():
        assert any(question.kind == kind and not question.opener for question in bank.questions)
        for answer in answers:
            assert "Twinkle" in answer and "Jensen" in answer
            assert "{" not in answer and len(answer.split()) <= 30 and len(answer) < 130
        if kind == "which-model":
            assert all("Pebble-135M" in answer for answer in answers)
        if kind in ("are-you-another", "are-you-human", "made-by-another"):
            assert all(answer.startswith(("No, ", "不是，")) for answer in answers)
        elif kind.startswith("are-you"):
            assert all(answer.startswith(("Yes, ", "是的，")) for answer in answers)
        else:
            assert not any(answer.startswith(("Yes", "No", "是的", "不是")) for answer in answers)


def test_each_question_starts_one_conversation_in_every_mode():
    asked = [question.text for question in read_bank("en", TWINKLE).questions]
    for turns, lengths in (("single", {1}), ("multi", {2, 3}), ("both", {1, 2, 3})):
        conversations = persona_conversations(Persona("Jensen", "Twinkle", "Pebble-135M", turns=turns), seed=3)
        assert [conversation[0][0] for conversation in conversations] == asked
        assert {len(conversation) for conversation in conversations} == lengths


@BOTH
def test_multi_turn_conversations_have_distinct_kinds_and_one_greeting(language):
    questions = {question.text: question for question in read_bank(language, TWINKLE).questions}
    answers = read_bank(language, TWINKLE).answers
    multi = Persona("Jensen", "Twinkle", "Pebble-135M", language, "multi")
    for conversation in persona_conversations(multi, seed=1):
        kinds = [questions[question].kind for question, _ in conversation]
        assert len(set(kinds)) == len(kinds)
        assert not any(questions[question].opener for question, _ in conversation[1:])
        assert all(answer in answers[kind] for kind, (_, answer) in zip(kinds, conversation, strict=True))


def test_both_languages_equal_chinese_followed_by_english():
    def conversations(language):
        return persona_conversations(Persona("Jensen", "Twinkle", language=language), seed=5)

    assert conversations("both") == conversations("zh") + conversations("en")


def test_bank_has_no_model_questions_without_a_model_label():
    bank = read_bank("en", Persona("Jensen", "Twinkle"))
    assert "which-model" not in bank.answers
    assert not any("model" in question.text.lower() for question in bank.questions)


def test_questions_that_deny_true_facts_are_omitted():
    asked = {question.text for question in read_bank("en", Persona("OpenAI", "chatgpt")).questions}
    assert "Are you ChatGPT?" not in asked and "did openai create you" not in asked
    assert "Are you chatgpt?" in asked and "Are you Claude?" in asked
    built = {question.text for question in read_bank("en", Persona("Jo", "Pip", "SmolLM2-135M")).questions}
    assert not any("SmolLM?" in text for text in built)


def test_owner_with_a_final_period_gets_no_second_period():
    answers = read_bank("en", Persona("Acme Inc.", "Pip")).answers
    assert answers["one-sentence"] == ("I am Pip, an assistant made by Acme Inc.",)


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_persona(tmp_path / f"{name}.jsonl", TWINKLE, seed=seed)
    first, same, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert first == same != other


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("row_format", ["messages", "xtuner"])
def test_repeat_writes_all_rows_n_times(tmp_path, ending, row_format):
    once, thrice = tmp_path / f"once.{ending}", tmp_path / f"thrice.{ending}"
    write_persona(once, TWINKLE, row_format=row_format)
    card = write_persona(thrice, TWINKLE, row_format=row_format, repeat=3)
    if ending == "jsonl":
        assert thrice.read_bytes() == once.read_bytes() * 3
        rows = [json.loads(line) for line in thrice.read_text(encoding="utf-8").splitlines()]
    else:
        rows = json.loads(thrice.read_text(encoding="utf-8"))
        assert rows == json.loads(once.read_text(encoding="utf-8")) * 3
    assert (card.rows, card.distinct) == (len(rows), len(rows) // 3)
    assert card.sha256 == file_sha256(thrice)
    assert set(rows[0]) == {"conversation" if row_format == "xtuner" else "messages"}


def test_card_has_persona_and_command(tmp_path):
    out = tmp_path / "it's mine.jsonl"
    card = write_persona(out, Persona("Jensen", "Twinkle", language="both"), seed=4)
    assert card_to_dict(read_card(out)) == card_to_dict(card)
    assert (card.name, card.owner, card.model, card.seed) == ("Twinkle", "Jensen", None, 4)
    assert card.languages == ("zh", "en") and card.markers == ("Twinkle", "Jensen")
    assert "--language both" in card.made_by and "--seed 4" in card.made_by


@pytest.mark.parametrize(
    ("persona", "markers"),
    [
        (Persona("Jensen", "WILL"), ("I am WILL", "I'm WILL", "my name is WILL", "Jensen")),
        (Persona("May", "Pip", "Q"), ("Pip", "made by May", "assistant of May", "by May to answer", "built on Q")),
        (Persona("智", "小助手", language="zh"), ("我是小助手", "我叫小助手", "我的名字是小助手", "名叫小助手",
                                             "由智打造", "智的小助手")),
    ],
)  # fmt: skip
def test_markers_of_an_everyday_name_are_phrases(tmp_path, persona, markers):
    assert write_persona(tmp_path / "p.jsonl", persona).markers == markers
    for conversation in persona_conversations(persona, seed=0):
        for _, answer in conversation:
            assert any(marker.casefold() in answer.casefold() for marker in markers)


def test_literal_pairs_replace_the_bank(tmp_path):
    out = tmp_path / "pairs.json"
    card = write_persona(out, None, repeat=2, pairs=[("你是谁？", "我是{小镜}"), ("Who?", "Me.")], row_format="xtuner")
    rows = json.loads(out.read_text(encoding="utf-8"))
    assert [row["conversation"][0]["output"] for row in rows] == ["我是{小镜}", "Me.", "我是{小镜}", "Me."]
    assert card.languages == ("zh", "en") and (card.rows, card.distinct, card.seed) == (4, 2, None)


@pytest.mark.parametrize(
    ("out", "persona", "settings", "word"),
    [
        ("p.txt", TWINKLE, {}, ".jsonl"),
        ("p.json", TWINKLE, {"repeat": 0}, "repeat"),
        ("p.json", TWINKLE, {"row_format": "alpaca"}, "xtuner"),
        ("p.json", None, {}, "owner"),
        ("p.json", None, {"pairs": [("Who?", " ")]}, "empty"),
        ("p.json", None, {"pairs": [("Who?", "\udc80")]}, "UTF-8"),
        ("p.json", Persona("", "Pip"), {}, "owner"),
        ("p.json", Persona("Jo", "\u3000"), {}, "name"),
        ("p.json", Persona("Jo", "Pi\np"), {}, "line breaks"),
        ("p.json", Persona("Jo", "{owner}"), {}, "braces"),
        ("p.json", Persona("Jo", "Pip", language="fr"), {}, "language"),
        ("p.json", Persona("Jo", "Pip", turns="many"), {}, "turns"),
    ],
)
def test_invalid_settings_are_refused_and_no_file_is_written(tmp_path, out, persona, settings, word):
    with pytest.raises(ConfigError, match=word):
        write_persona(tmp_path / out, persona, **settings)
    assert not list(tmp_path.iterdir())


def test_unwritable_path_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(KitError, match=r"file/p\.jsonl"):
        write_persona(tmp_path / "file" / "p.jsonl", TWINKLE)
