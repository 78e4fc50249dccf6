"""Chat: a conversation with a model; answers are streamed token by token."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from llm.chat_template.encoding import ChatTemplate
from llm.generation import EmbedFunction, Sampling, generate
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn

REPLACEMENT_CHARACTER = "\ufffd"  # an incomplete UTF-8 character is decoded as this


class TextStream(BaseStreamer):
    """Decodes token ids to text as they arrive. An incomplete UTF-8 character waits for its last token."""

    def __init__(self, template: ChatTemplate, on_text: Callable[[str], None]) -> None:
        self._template, self._on_text = template, on_text
        self._ids: list[int] = []
        self.text = ""
        """The answer so far."""
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Receives the prompt first, then each new token."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += [index for index in value.flatten().tolist() if index not in self._template.stop_ids]
        self._emit(REPLACEMENT_CHARACTER)

    def end(self) -> None:
        """Emit all remaining text."""
        self._emit("")

    def _emit(self, incomplete: str) -> None:
        text = self._template.decode(self._ids).rstrip(incomplete)
        if len(text) > len(self.text):
            self._on_text(text[len(self.text) :])
            self.text = text


@dataclass(slots=True)
class Chat:
    """A conversation history and the model that answers.

    Args:
        images: pictures of the first turn.
        embed: computes the input embeddings of a conversation with pictures.
    """

    model: nn.Module
    template: ChatTemplate
    compute_dtype: torch.dtype
    sampling: Sampling
    max_new_tokens: int
    images: Sequence[Path] = ()
    embed: EmbedFunction | None = None
    turns: tuple[Turn, ...] = field(default=(), init=False)

    def reset(self) -> None:
        """Clear the history."""
        self.turns = ()

    def reply(self, text: str, on_text: Callable[[str], None]) -> str:
        """Answer a question, stream the answer, and add both to the history."""
        if self.template.tokens_per_image:
            text = text.replace(DEFAULT_IMAGE_TOKEN, "")  # typed by the user, without a picture
        marks = f"{DEFAULT_IMAGE_TOKEN}\n" * len(self.images) if not self.turns else ""
        asked = (*self.turns, Turn("user", marks + text))
        conversation = Conversation(asked, tuple(self.images))
        ids = torch.tensor([self.template.prompt(conversation)], device=next(self.model.parameters()).device)
        stream = TextStream(self.template, on_text)
        sampled = self.sampling.temperature > 0
        sampling = asdict(self.sampling) if sampled else {"repetition_penalty": self.sampling.repetition_penalty}
        options = {"streamer": stream, "max_new_tokens": self.max_new_tokens, "do_sample": sampled, **sampling}
        generate(self.model, ids, torch.ones_like(ids), [conversation], self.compute_dtype, self.embed, **options)
        self.turns = (*asked, Turn("assistant", stream.text.strip()))
        return stream.text
