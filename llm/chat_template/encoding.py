"""Conversations in the model's own chat markup, with the loss on answers only.

The mask is exact by construction: prompt, answer with its stop token, and what separates turns come from the markup as
pieces, are tokenised apart and joined. Nothing is found again by its text or its length in tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm.chat_template.named_templates import NamedTemplate
from llm.chat_template.renderers import Kind, Markup, ModelMarkup, NamedMarkup, Piece
from llm.chat_template.special_tokens import Literal
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn
from tuning.errors import DataError, ModelError
from tuning.training.samples import IMAGE_TOKEN_INDEX, EncodedSample


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens, what it is of, and whether it is learned from."""

    ids: list[int]
    kind: Kind
    supervised: bool


class ChatTemplate:
    """A tokenizer's chat template, or a named one in its place, and the task's system text.

    Args:
        tokenizer: with a `chat_template`, unless there is a named one; what it saves then carries that.
        system: given to conversations that start without a system turn; None leaves it to the template.
        patches: places that each `<image>` in a text takes; 0 where the model sees no pictures.
        named: taken instead of the tokenizer's own.

    Raises:
        ModelError: the tokenizer has no chat template, or one whose answers have no stop token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None,
        patches: int = 0,
        named: NamedTemplate | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.patches = patches
        self._literal = Literal(tokenizer)
        if named is not None:
            tokenizer.chat_template = named.jinja()
        elif not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: its tokenizer has no chat template; take the chat version of this model, "
                "or name one with `template`."
            )
        self._markup: Markup = NamedMarkup(named) if named else ModelMarkup(tokenizer, self._literal)
        self._begin, self._end = _ids(tokenizer.bos_token_id), _ids(tokenizer.eos_token_id)
        turns = self._with_system((Turn("user", "question"), Turn("assistant", "answer")))
        closing = [ids for ids in self._segments(turns, "chat template") if ids.supervised][-1].ids
        self.stop_ids = tuple(dict.fromkeys([*(each for each in closing if each in self._literal.special), *self._end]))
        """Tokens that end an answer: those the template closes answers with first, the tokenizer's own after them."""

    @property
    def pad_id(self) -> int:
        """A token to pad with; masks go by position, so any will do."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.stop_ids[0]

    def default_system(self) -> str | None:
        """What the template itself writes before a first user turn, when the task gives no system text."""
        return None if self.system else self._markup.injected_system()

    def encode(
        self, conversation: Conversation, max_length: int, where: str = "", separated: bool = False
    ) -> EncodedSample:
        """One conversation as tokens and mask; a long one is cut after the last whole answer that fits.

        Args:
            separated: keep what would part the last answer from a next turn, as XTuner does, without learning it.

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
            answers += segment.kind == "answer"
            if segment.kind == "answer" or (separated and segment.kind == "between"):
                kept = len(ids)
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
        pieces = self._markup.asking(self._guarded(self._with_system(conversation.turns)), "prompt")
        return [index for segment in self._tokenised(pieces) for index in segment.ids]

    def _with_system(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        if self.system and not (turns and turns[0].role == "system"):
            return (Turn("system", self.system), *turns)
        return tuple(turns)

    def _guarded(self, turns: Iterable[Turn]) -> tuple[Turn, ...]:
        """The turns with special tokens that their texts spell marked as text; `<image>` is meant where it is seen."""
        meant = DEFAULT_IMAGE_TOKEN if self.patches else ""
        return tuple(replace(turn, content=self._literal.guard(turn.content, meant)) for turn in turns)

    def _segments(self, turns: Sequence[Turn], where: str) -> Iterator[Segment]:
        return self._tokenised(self._markup.answered(self._guarded(turns), where))

    def _tokenised(self, pieces: Iterable[Piece]) -> Iterator[Segment]:
        for piece in pieces:
            ids = self._begin[:1] if piece.begins else []
            for text in piece.texts:
                ids += self._tokens(text)
            if piece.ends:
                if not self._end:
                    raise ModelError(
                        f"{self.tokenizer.name_or_path}: neither template nor tokenizer has a stop token; set one."
                    )
                ids += self._end[:1]
            yield Segment(ids, piece.kind, piece.loss)

    def _tokens(self, text: str) -> list[int]:
        if self.patches and DEFAULT_IMAGE_TOKEN in text:
            before, *after = text.split(DEFAULT_IMAGE_TOKEN)
            ids = self._literal.ids(before)
            for piece in after:
                ids += [IMAGE_TOKEN_INDEX] * self.patches + self._literal.ids(piece)
            return ids
        return self._literal.ids(text)


def _ids(of: Any) -> list[int]:
    """What a tokenizer says of its first or last token: one, several or none."""
    return [int(index) for index in (of if isinstance(of, list) else [of]) if index is not None]
