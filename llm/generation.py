"""Generation: greedy answers in batches for probes and rehearsal; sampling settings for chat.

Shapes: B sequences, T tokens, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import Conversation
from tuning.progress import ProgressBar

# int64[B, T] with `IMAGE_TOKEN_INDEX` among the ids, and the B conversations -> float[B, T, D]
EmbedFunction = Callable[[torch.Tensor, Sequence[Conversation]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the model.

    Args:
        finished: whether it ends with a stop token.
    """

    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling settings; temperature 0 is greedy decoding."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


def generate_answers(
    model: nn.Module,
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    max_new_tokens: int,
    batch_size: int = 64,
    compute_dtype: torch.dtype = torch.float32,
    embed: EmbedFunction | None = None,
    label: str = "answers",
    shown: bool = False,
) -> list[Answer]:
    """The greedy answer to each conversation, in order.

    Conversations of similar length share a batch and are padded on the left. The same conversations always give the
    same batches, so that answers repeat exactly.

    Args:
        batch_size: the largest number of conversations in a batch.
        embed: computes the input embeddings of conversations with pictures; None gives the model the token ids.
        label: of the progress bar; `shown` turns the bar on.
    """
    prompts = [template.prompt(conversation) for conversation in conversations]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with ProgressBar(label, len(prompts), shown=shown) as progress:
            for start in range(0, len(by_length), batch_size):
                group = by_length[start : start + batch_size]
                ids, mask = _pad_left([prompts[index] for index in group], template.pad_id, device)
                asked = [conversations[index] for index in group]
                output = generate(
                    model, ids, mask, asked, compute_dtype, embed, max_new_tokens=max_new_tokens, do_sample=False
                )
                new = output if embed else output[:, ids.shape[1] :]  # with embeddings, only new tokens are returned
                for index, row in zip(group, new.tolist(), strict=True):
                    answers[index] = _truncate_at_stop(row, template)
                progress.advance(len(group))
    finally:
        model.train(training)
    return [answers[index] for index in range(len(prompts))]


@torch.no_grad()
def generate(
    model: nn.Module,
    ids: torch.Tensor,
    mask: torch.Tensor,
    conversations: Sequence[Conversation],
    compute_dtype: torch.dtype,
    embed: EmbedFunction | None,
    **options: Any,
) -> torch.Tensor:
    """Call transformers' `generate` for B prompts; `options` as it takes them.

    Args:
        ids: int64[B, T]; `mask` int64[B, T].
    """
    with autocast_to(compute_dtype, ids.device):
        inputs = {"inputs_embeds": embed(ids, conversations)} if embed else {"input_ids": ids}
        return model.generate(**inputs, attention_mask=mask, **options)  # pyright: ignore[reportCallIssue]


def autocast_to(compute_dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to the compute dtype; off for fp32."""
    return torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32)


def _pad_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _truncate_at_stop(ids: list[int], template: ChatTemplate) -> Answer:
    end = next((position for position, index in enumerate(ids) if index in template.stop_ids), None)
    return Answer(template.decode(ids[:end]).strip(), end is not None)
