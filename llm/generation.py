"""Generation: batched greedy answers for probes and rehearsal; sampling settings for chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from llm.chat_template.encoding import ChatTemplate
from tuning.data.conversation import Conversation

# int64[B, T] with `IMAGE_TOKEN_INDEX` among the ids, and the B conversations -> float[B, T, D]
EmbedFunction = Callable[[torch.Tensor, Sequence[Conversation]], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, and whether it ended by itself."""

    text: str
    finished: bool


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn; temperature 0 takes the likeliest."""

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
    on_progress: Callable[[int], None] | None = None,
    embed: EmbedFunction | None = None,
) -> list[Answer]:
    """The likeliest answer to each conversation, in their order.

    Conversations of like length share a batch (at most `batch_size`), padded on the left; the same questions in the
    same order always share the same batches, so that answers repeat exactly.

    Args:
        embed: what turns ids with pictures among them into the model's inputs; the ids themselves where left out.
    """
    prompts = [template.prompt(conversation) for conversation in conversations]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, Answer] = {}
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        for start in range(0, len(by_length), batch_size):
            group = by_length[start : start + batch_size]
            ids, mask = _pad_left([prompts[index] for index in group], template.pad_id, device)
            with torch.no_grad(), autocast_to(compute_dtype, device):
                seen = {"inputs_embeds": embed(ids, [conversations[index] for index in group])} if embed else {}
                output = model.generate(  # pyright: ignore[reportCallIssue]
                    **(seen or {"input_ids": ids}),
                    attention_mask=mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                )
            said = output if embed else output[:, ids.shape[1] :]  # given embeddings, only what is new comes back
            for index, row in zip(group, said.tolist(), strict=True):
                answers[index] = _truncate_at_stop(row, template)
            if on_progress:
                on_progress(len(group))
    finally:
        model.train(training)
    return [answers[index] for index in range(len(prompts))]


def autocast_to(compute_dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to the compute type, where that is not fp32 already."""
    return torch.autocast(device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32)


def _pad_left(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _truncate_at_stop(ids: list[int], template: ChatTemplate) -> Answer:
    end = next((position for position, index in enumerate(ids) if index in template.stop_ids), None)
    text = template.tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return Answer(str(text).strip(), end is not None)
