"""Chat template: conversation to token ids and loss mask; prompts for generation.

The loss mask is exact: the renderer gives prompt, answer with stop token, and separator as segments, which are
tokenized separately and joined. Nothing is searched for in text or token ids.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from llm.chat_template.named_templates import NamedTemplate
from llm.chat_template.renderers import NamedTemplateRenderer, Segment, TokenizerTemplateRenderer
from llm.chat_template.special_tokens import SpecialTokenEscaper
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn
from tuning.errors import DataError, ModelError
from tuning.training.samples import IMAGE_TOKEN_INDEX, EncodedSample


class ChatTemplate:
    """A tokenizer with its chat template, or with a named template, and the task's system text.

    Args:
        tokenizer: its `chat_template` is replaced if `named` is given, and required otherwise.
        system: system text of conversations without a system turn; None leaves it to the template.
        tokens_per_image: image tokens for each `<image>` in a text; 0 for a text model.
        named: a named template, used instead of the tokenizer's own.

    Raises:
        ModelError: there is no chat template, or its answers have no stop token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None,
        tokens_per_image: int = 0,
        named: NamedTemplate | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.tokens_per_image = tokens_per_image
        self._escaper = SpecialTokenEscaper(tokenizer)
        if named is not None:
            tokenizer.chat_template = named.jinja()
        elif not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: the tokenizer has no chat template; use the chat version of this model, "
                "or set `template` to a named template."
            )
        self._renderer = NamedTemplateRenderer(named) if named else TokenizerTemplateRenderer(tokenizer, self._escaper)
        self._begin, self._end = _ids(tokenizer.bos_token_id), _ids(tokenizer.eos_token_id)
        turns = self._with_system((Turn("user", "question"), Turn("assistant", "answer")))
        closing = [ids for segment, ids in self._segments(turns, "chat template") if segment.loss][-1]
        self.stop_ids = tuple(
            dict.fromkeys([*(each for each in closing if each in self._escaper.special_ids), *self._end])
        )
        """Token ids that end an answer: the template's first, then the tokenizer's eos."""

    @property
    def pad_id(self) -> int:
        """Id of the padding token. Any token is possible, because loss masks use positions."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.stop_ids[0]

    def default_system(self) -> str | None:
        """The system text that the template adds by itself, if the task gives none."""
        return None if self.system else self._renderer.default_system()

    def encode(
        self, conversation: Conversation, max_length: int, where: str = "", keep_separator: bool = False
    ) -> EncodedSample:
        """One conversation as token ids and loss mask, truncated after the last complete answer that fits.

        Args:
            keep_separator: keep the separator after the last answer, as XTuner does, without loss.

        Raises:
            DataError: no answer has loss, none fits into `max_length`, or the template refuses the turns.
        """
        ids: list[int] = []
        loss_mask: list[bool] = []
        kept, answers = 0, 0
        for segment, tokens in self._segments(self._with_system(conversation.turns), where):
            ids += tokens
            loss_mask += [segment.loss] * len(tokens)
            if len(ids) > max_length:
                break
            answers += segment.kind == "answer"
            if segment.kind == "answer" or (keep_separator and segment.kind == "separator"):
                kept = len(ids)
        if not kept:
            raise DataError(
                f"{where}: no whole answer fits into {max_length} tokens; raise data.max_length or shorten the row."
            )
        if not any(loss_mask[:kept]):
            raise DataError(f"{where}: no answer is trained on (each `loss` is false); change one or remove the row.")
        truncated = answers < sum(turn.role == "assistant" for turn in conversation.turns)
        return EncodedSample(np.asarray(ids[:kept], np.int32), np.asarray(loss_mask[:kept], np.bool_), where, truncated)

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids of the prompt for the next answer, tokenized exactly as in `encode`.

        Raises:
            DataError: the last turn is not the user's.
        """
        if not conversation.turns or conversation.turns[-1].role != "user":
            raise DataError("the last turn of a prompt must be the user's; add the question.")
        segments = self._renderer.render_prompt(self._escape_turns(self._with_system(conversation.turns)), "prompt")
        return [index for _, ids in self._tokenize_segments(segments) for index in ids]

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _with_system(self, turns: Sequence[Turn]) -> tuple[Turn, ...]:
        if self.system and not (turns and turns[0].role == "system"):
            return (Turn("system", self.system), *turns)
        return tuple(turns)

    def _escape_turns(self, turns: Iterable[Turn]) -> tuple[Turn, ...]:
        """The turns with spelled special tokens escaped. For a vision-language model, `<image>` stays a token."""
        kept = DEFAULT_IMAGE_TOKEN if self.tokens_per_image else ""
        return tuple(replace(turn, content=self._escaper.escape(turn.content, kept)) for turn in turns)

    def _segments(self, turns: Sequence[Turn], where: str) -> Iterator[tuple[Segment, list[int]]]:
        return self._tokenize_segments(self._renderer.render_answers(self._escape_turns(turns), where))

    def _tokenize_segments(self, segments: Iterable[Segment]) -> Iterator[tuple[Segment, list[int]]]:
        for segment in segments:
            ids = self._begin[:1] if segment.add_bos else []
            for text in segment.texts:
                ids += self._tokenize_text(text)
            if segment.add_eos:
                if not self._end:
                    raise ModelError(
                        f"{self.tokenizer.name_or_path}: template and tokenizer have no stop token; set one."
                    )
                ids += self._end[:1]
            yield segment, ids

    def _tokenize_text(self, text: str) -> list[int]:
        before, *after = text.split(DEFAULT_IMAGE_TOKEN) if self.tokens_per_image else [text]
        ids = self._escaper.tokenize(before)
        for piece in after:
            ids += [IMAGE_TOKEN_INDEX] * self.tokens_per_image + self._escaper.tokenize(piece)
        return ids


def _ids(of: Any) -> list[int]:
    """The bos or eos ids of a tokenizer as a list; a tokenizer may have one, several or none."""
    return [int(index) for index in (of if isinstance(of, list) else [of]) if index is not None]
