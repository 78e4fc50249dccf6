"""Rehearsal: the base model answers each prompt once; later answers come from the cache."""

import json

import llm.rehearsal as rehearsal
from llm.loading import load_model, load_template
from tuning.settings import Quant, Rehearsal


def test_answers_are_cached_by_model_and_prompt(tiny_model, cache, write, monkeypatch):
    asked: list[str] = []
    answering = rehearsal.generate_answers

    def counting(model, template, conversations, *rest, **options):
        asked.extend(conversation.question for conversation in conversations)
        return answering(model, template, conversations, *rest, **options)

    monkeypatch.setattr(rehearsal, "generate_answers", counting)
    few, more = write("few.yaml", "- who are you?\n- yes\n"), write("more.yaml", "- yes\n- no\n- one\n")
    template = load_template(str(tiny_model), None)
    loaded = load_model(str(tiny_model), template, Quant(bits=16), "cpu")
    first = rehearsal.answer_rehearsal_prompts(loaded, Rehearsal(prompts=(few,), max_new_tokens=200))
    assert rehearsal.answer_rehearsal_prompts(loaded, Rehearsal(prompts=(few,), max_new_tokens=200)) == first
    rehearsal.answer_rehearsal_prompts(loaded, Rehearsal(prompts=(few, more), max_new_tokens=200))
    assert asked == ["who are you?", "yes", "no", "one"]
    (store,) = (cache / "rehearsal").glob("*.jsonl")
    assert [json.loads(line)["prompt"] for line in store.read_text().splitlines()] == asked
    quantized = load_model(str(tiny_model), template, Quant(bits=4), "cpu")
    rehearsal.answer_rehearsal_prompts(quantized, Rehearsal(prompts=(few,), max_new_tokens=200))
    assert asked[4:] == ["who are you?", "yes"]


def test_unfinished_answers_are_omitted(tiny_model, cache, write):
    template = load_template(str(tiny_model), None)
    loaded = load_model(str(tiny_model), template, Quant(bits=16), "cpu")
    rows = rehearsal.answer_rehearsal_prompts(
        loaded, Rehearsal(prompts=(write("p.yaml", "- who are you?\n- yes\n"),), max_new_tokens=1)
    )
    assert rows == []
