"""Asks XTuner 0.2.0 for the token ids and labels of a few conversations, in every chat template that it knows.

Run with the Python of an environment that has XTuner in it (`twinlens xtuner install` makes one):

    PYTHON_OF_XTUNER tests/xtuner_fixtures/make.py

It rewrites labels.json and templates.json beside it. A row of labels.json names its conversation, which stands under
`conversations` as it is before XTuner's map functions see it; a row without a template is encoded as it is.
"""

import copy
import json
import re
from pathlib import Path

import sentencepiece
from xtuner.dataset.map_fns import llava_map_fn, openai_map_fn, template_map_fn
from xtuner.dataset.utils import encode_fn
from xtuner.utils import PROMPT_TEMPLATE, SYSTEM_TEMPLATE

HERE = Path(__file__).parent
CHAT_NAMES = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>")
FIELDS = ("SYSTEM", "INSTRUCTION", "SUFFIX", "SUFFIX_AS_EOS", "SEP", "STOP_WORDS")


class Tokenizer:
    """The part of a slow sentencepiece tokenizer that XTuner's `encode_fn` asks for: specials first, then pieces."""

    bos_token_id, eos_token_id = 1, 2

    def __init__(self, file: Path, names: dict[str, int]):
        self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        self._specials = {"<unk>": 0, "<s>": 1, "</s>": 2, **names}
        self._split = re.compile("(" + "|".join(map(re.escape, self._specials)) + ")")

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        ids = []
        for part in self._split.split(text):
            ids += [self._specials[part]] if part in self._specials else self._pieces.encode(part)
        return ids


def turn(question: str, answer: str, **others) -> dict:
    return {"input": question, "output": answer, **others}


def said(source: str, text: str) -> dict:
    return {"from": source, "value": text}


def message(role: str, content: str, **others) -> dict:
    return {"role": role, "content": content, **others}


WHO = turn("Who are you? 你是谁?", "I am Pebble 🪨, 一个小助手。")
NAME = turn("And your name?", "Pebble.")
BYE = turn("再见!", "Bye, 下次见 👋")
PLAIN = {
    "single": [WHO],
    "three_turns": [WHO, NAME, BYE],
    "system_first": [{"system": "You are Pebble, 石头。", **WHO}, NAME],
    "system_later": [WHO, {"system": "Be brief. 请简短。", **NAME}],
    "system_empty": [{"system": "", **WHO}],
    "first_not_learned": [{**WHO, "output_with_loss": False}, {**NAME, "output_with_loss": True}],
    "whitespace": [turn("  two  spaces\n\n", " leading\ttab \n")],
}
LLAVA = {
    "image_first": [said("human", "<image>\nWhat is this?"), said("gpt", "A grey pebble. 一块石头。")],
    "image_last": [said("human", "What is this? <image>"), said("gpt", "A pebble 🪨.")],
    "image_only": [said("human", "<image>"), said("gpt", "A pebble.")],
    "image_then_talk": [
        said("human", "<image>\n这是什么?"),
        said("gpt", "一块石头。"),
        said("human", "What colour?"),
        said("gpt", "Grey."),
    ],
    "no_image": [said("human", "Who are you?"), said("gpt", "Pebble.")],
    "answer_first": [said("gpt", "Hello."), said("human", "<image>\nWhat?"), said("gpt", "A pebble.")],
}
OPENAI = {
    "system_and_turns": [
        message("system", "You are Pebble."),
        message("user", "Who are you?"),
        message("assistant", "Pebble 🪨."),
        message("user", "再见!"),
        message("assistant", "Bye."),
    ],
    "loss_false": [
        message("user", "Who?"),
        message("assistant", "Nobody.", loss=False),
        message("user", "Really?"),
        message("assistant", "No: Pebble.", loss=True),
    ],
    "answer_first": [message("assistant", "Hello."), message("user", "Who are you?"), message("assistant", "Pebble.")],
    "two_questions": [message("user", "Who are you?"), message("user", " 你是谁?"), message("assistant", "Pebble.")],
}


def encoded(conversation: list[dict], template: str | None, tokenizer: Tokenizer, max_length: int, image: bool) -> dict:
    example = {"conversation": copy.deepcopy(conversation)}
    if template is not None:
        example = template_map_fn(example, PROMPT_TEMPLATE[template])
    return encode_fn(example, tokenizer, max_length, with_image_token=image)


def rows(tokenizers: dict[str, Tokenizer]):
    """Every conversation in every template, encoded, one after the other."""

    def row(kind: str, name: str, template: str | None, tokenizer: str, turns: list[dict], max_length: int = 2048):
        answer = encoded(turns, template, tokenizers[tokenizer], max_length, kind == "llava")
        head = {"kind": kind, "conversation": name, "template": template, "tokenizer": tokenizer}
        return {**head, "max_length": max_length, "input_ids": answer["input_ids"], "labels": answer["labels"]}

    own = {"internlm": ("internlm_chat", "default"), "internlm2": ("internlm2_chat", "default")}
    for template in PROMPT_TEMPLATE:
        for name, turns in PLAIN.items():
            if "SYSTEM" not in PROMPT_TEMPLATE[template] and any(each.get("system") for each in turns):
                continue  # minicpm: XTuner raises AttributeError
            yield row("plain", name, template, "internlm2", turns)
            if template in own["internlm"]:
                yield row("plain", name, template, "internlm", turns)
        whole = len(encoded(PLAIN["three_turns"], template, tokenizers["internlm2"], 2048, False)["input_ids"])
        yield row("plain", "three_turns", template, "internlm2", PLAIN["three_turns"], max_length=whole - 4)
        yield row("plain", "three_turns", template, "internlm2", PLAIN["three_turns"], max_length=whole // 2)
    for tokenizer, templates in own.items():
        yield row("plain", "three_turns", None, tokenizer, PLAIN["three_turns"])
        for template in templates:
            for name, talk in LLAVA.items():
                turns = llava_map_fn({"conversations": copy.deepcopy(talk)})["conversation"]
                yield row("llava", name, template, tokenizer, turns)
            for name, talk in OPENAI.items():
                turns = openai_map_fn({"messages": copy.deepcopy(talk)})["conversation"]
                yield row("openai", name, template, tokenizer, turns)


def main() -> None:
    names = dict(zip(CHAT_NAMES, range(92538, 92544), strict=True))
    tokenizers = {
        "internlm": Tokenizer(HERE / "tokenizer_internlm.model", {}),
        "internlm2": Tokenizer(HERE / "tokenizer_internlm2.model", names),
    }
    lines = [json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in rows(tokenizers)]
    conversations = {"plain": PLAIN, "llava": LLAVA, "openai": OPENAI}
    head = json.dumps(conversations, ensure_ascii=False, indent=1)
    text = f'{{"conversations":{head},\n"rows":[\n' + ",\n".join(lines) + "\n]}\n"
    (HERE / "labels.json").write_text(text, encoding="utf-8")
    templates = {name: {key: t[key] for key in FIELDS if key in t} for name, t in PROMPT_TEMPLATE.items()}
    both = {"PROMPT_TEMPLATE": templates, "SYSTEM_TEMPLATE": dict(SYSTEM_TEMPLATE)}
    text = json.dumps(both, ensure_ascii=False, indent=1) + "\n"
    (HERE / "templates.json").write_text(text, encoding="utf-8")
    print(f"{len(lines)} rows")


if __name__ == "__main__":
    main()
