"""Conversations in the model's own chat markup, with the loss on answers only.

The mask is exact by construction: prompt, answer with its stop token, and what separates turns are rendered by the
chat template, tokenised apart and joined. Nothing is found again by its text or its length in tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from tuning.conversation import IMAGE_MARK, Conversation, Turn
from tuning.errors import DataError, ModelError
from tuning.samples import PATCH, EncodedSample


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens and whether they are learned from; `closes_answer` marks the last segment of a whole answer."""

    ids: list[int]
    supervised: bool
    closes_answer: bool = False


class ChatTemplate:
    """A tokenizer's chat template, and the task's system text.

    Args:
        tokenizer: with a `chat_template`.
        system: given to conversations that start without a system turn; None leaves it to the template.
        patches: places that each `<image>` in a text takes; 0 where the model sees no pictures.

    Raises:
        ModelError: the tokenizer has no chat template, or one whose answers have no stop token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None, patches: int = 0) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.patches = patches
        self._special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special.update(tokenizer.all_special_ids)
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; take the chat version of this model."
            )
        turns = (Turn("user", "question"), Turn("assistant", "answer"))
        answer = [
            segment for segment in self._segments(self._with_system(turns), "chat template") if segment.supervised
        ]
        self.stop_ids = tuple(dict.fromkeys([answer[-1].ids[-1], *_eos_ids(tokenizer)]))
        """Tokens that end an answer: the one the template closes answers with first, the tokenizer's own after it."""

    @property
    def pad_id(self) -> int:
        """A token to pad with; masks go by position, so any will do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.stop_ids[0]

    def default_system(self) -> str | None:
        """What the template itself writes before a first user turn, when the task gives no system text."""
        if self.system:
            return None
        mark = "\u2063mark\u2063"
        plain = self._render((Turn("user", mark),), False, "chat template")
        given = self._render((Turn("system", mark), Turn("user", mark)), False, "chat template")
        frame, between, _ = given.split(mark, 2)
        before = plain.partition(mark)[0]
        if not (before.startswith(frame) and before.endswith(between) and len(before) > len(frame) + len(between)):
            return None
        return before[len(frame) : len(before) - len(between)]

    def encode(self, conversation: Conversation, max_length: int, where: str = "") -> EncodedSample:
        """One conversation as tokens and mask; a long one is cut after the last whole answer that fits.

        Raises:
            DataError: no answer is learned from, none fits into `max_length`, or the template refuses the turns.
        """
        ids: list[int] = []
        supervised: list[bool] = []
        kept, answers = 0, 0
        for segment in self._segments(self._with_system(conversation.turns), where):
            ids += segment.ids
            supervised += [segment.supervised] * len(segment.ids)
            if len(ids) > max_length:
                break
            if segment.closes_answer:
                kept, answers = len(ids), answers + 1
        if not kept:
            raise DataError(
                f"{where}: no whole answer fits into {max_length} tokens; raise data.max_length or shorten the row."
            )
        if not any(supervised[:kept]):
            raise DataError(f"{where}: no answer is learned from (loss is off on all of them); turn one on or drop it.")
        cut = answers < sum(turn.role == "assistant" for turn in conversation.turns)
        return EncodedSample(np.asarray(ids[:kept], np.int32), np.asarray(supervised[:kept], np.bool_), where, cut)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens up to where the model answers next, tokenised exactly as `encode` does.

        Raises:
            DataError: the last turn is not the user's.
        """
        if not conversation.turns or conversation.turns[-1].role != "user":
            raise DataError("a prompt ends with a user turn; add the question.")
        turns = self._with_system(conversation.turns)
        ids: list[int] = []
        text = ""
        for segment, text in self._walk(turns, "prompt"):  # noqa: B007 - the last text is needed below
            ids += segment.ids
        rest = self._render(turns, True, "prompt")
        self._refuse_rewrite(rest, text, "prompt")
        return ids + self._tokens(rest[len(text) :])

    def _with_system(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        if self.system and not (turns and turns[0].role == "system"):
            return (Turn("system", self.system), *turns)
        return tuple(turns)

    def _segments(self, turns: tuple[Turn, ...], where: str) -> Iterator[Segment]:
        return (segment for segment, _ in self._walk(turns, where))

    def _walk(self, turns: tuple[Turn, ...], where: str) -> Iterator[tuple[Segment, str]]:
        """Segments in order, each with all the text rendered up to the end of its turn."""
        text = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            before = self._render(turns[:index], True, where)
            whole = self._render(turns[: index + 1], False, where)
            self._refuse_rewrite(before, text, where)
            self._refuse_rewrite(whole, before, where)
            yield Segment(self._tokens(before[len(text) :]), False), whole
            written = whole[len(before) :]
            end = _end_of(turn.content, written)
            if end is None:
                raise ModelError(
                    f"{where}: the chat template does not write this answer out as it stands; take another."
                )
            stop, separator = self._closing(written[end:])
            yield Segment(self._tokens(written[:end]) + stop, turn.loss, closes_answer=True), whole
            yield Segment(separator, False), whole
            text = whole

    def _closing(self, tail: str) -> tuple[list[int], list[int]]:
        """What follows an answer, split behind its stop token."""
        ids = self._tokens(tail)
        for position, index in enumerate(ids):
            if index in self._special:
                return ids[: position + 1], ids[position + 1 :]
        if not (eos := _eos_ids(self.tokenizer)):
            raise ModelError(
                f"{self.tokenizer.name_or_path}: neither template nor tokenizer has a stop token; set one."
            )
        return [eos[0]], ids

    def _tokens(self, text: str) -> list[int]:
        if self.patches and IMAGE_MARK in text:
            before, *after = text.split(IMAGE_MARK)
            ids = self._tokens(before)
            for piece in after:
                ids += [PATCH] * self.patches + self._tokens(piece)
            return ids
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    def _render(self, turns: Sequence[Turn], generate: bool, where: str) -> str:
        messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        except TemplateError as error:
            raise DataError(
                f"{where}: the model's chat template refuses these turns ({error}); change their roles."
            ) from error
        assert isinstance(text, str)
        return text

    @staticmethod
    def _refuse_rewrite(text: str, prefix: str, where: str) -> None:
        if not text.startswith(prefix):
            raise ModelError(
                f"{where}: the chat template rewrites earlier turns, so what is learned is not what is asked later; "
                "give one question a row or take a model with an append-only template."
            )


def _end_of(answer: str, written: str) -> int | None:
    """Where an answer ends in what the template wrote for it; templates may strip it and put white space in front."""
    for text in (answer, answer.strip()):
        start = written.find(text)
        if start >= 0 and not written[:start].strip():
            return start + len(text)
    return None


def _eos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = tokenizer.eos_token_id
    return [int(index) for index in (eos if isinstance(eos, list) else [eos]) if index is not None]
