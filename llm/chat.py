"""Chat: a conversation with a model, its answers streamed token by token."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.generation.streamers import BaseStreamer

from llm.chat_template.encoding import ChatTemplate
from llm.generation import EmbedFunction, Sampling, autocast_to
from tuning.data.conversation import DEFAULT_IMAGE_TOKEN, Conversation, Turn

REPLACEMENT_CHARACTER = "\ufffd"  # what an unfinished UTF-8 sequence decodes to


class TextStream(BaseStreamer):
    """Decodes token ids into text as they arrive; incomplete UTF-8 characters wait for their last token."""

    def __init__(self, template: ChatTemplate, on_text: Callable[[str], None]) -> None:
        self._template, self._on_text = template, on_text
        self._ids: list[int] = []
        self._said = ""
        self._prompt = True

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._said

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with each new token."""
        if self._prompt:
            self._prompt = False
            return
        self._ids += [index for index in value.flatten().tolist() if index not in self._template.stop_ids]
        self._tell(self._decoded().rstrip(REPLACEMENT_CHARACTER))

    def end(self) -> None:
        """Emit the text that was held back."""
        self._tell(self._decoded())

    def _decoded(self) -> str:
        text = self._template.tokenizer.decode(self._ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _tell(self, text: str) -> None:
        if len(text) > len(self._said):
            self._on_text(text[len(self._said) :])
            self._said = text


class Chat:
    """A conversation history and the model that answers.

    Args:
        images: pictures of the first turn; `embed` turns them into embeddings.
    """

    def __init__(
        self,
        model: nn.Module,
        template: ChatTemplate,
        compute_dtype: torch.dtype,
        sampling: Sampling,
        max_new_tokens: int,
        images: Sequence[Path] = (),
        embed: EmbedFunction | None = None,
    ) -> None:
        self._model, self._template, self._compute_dtype = model, template, compute_dtype
        self._sampling, self._max_new_tokens = sampling, max_new_tokens
        self._images, self._embed = tuple(images), embed
        self._turns: tuple[Turn, ...] = ()

    def reset(self) -> None:
        """Clear the history."""
        self._turns = ()

    def reply(self, text: str, on_text: Callable[[str], None]) -> str:
        """Answer a question, stream the answer, and add both to the history."""
        if self._template.tokens_per_image:
            text = text.replace(DEFAULT_IMAGE_TOKEN, "")  # typed, it shows nothing
        shown = f"{DEFAULT_IMAGE_TOKEN}\n" * len(self._images) if not self._turns else ""
        asked = (*self._turns, Turn("user", shown + text))
        conversation = Conversation(asked, self._images)
        ids = torch.tensor([self._template.prompt(conversation)], device=next(self._model.parameters()).device)
        stream = TextStream(self._template, on_text)
        with torch.no_grad(), autocast_to(self._compute_dtype, ids.device):
            seen = {"inputs_embeds": self._embed(ids, [conversation])} if self._embed else {"input_ids": ids}
            self._model.generate(  # pyright: ignore[reportCallIssue]
                **seen,
                attention_mask=torch.ones_like(ids),
                streamer=stream,
                max_new_tokens=self._max_new_tokens,
                **generation_options(self._sampling),
            )
        self._turns = (*asked, Turn("assistant", stream.text.strip()))
        return stream.text


def generation_options(sampling: Sampling) -> dict[str, Any]:
    """Sampling settings as arguments of transformers' `generate`."""
    options: dict[str, Any] = {"repetition_penalty": sampling.repetition_penalty, "do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        options |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return options
