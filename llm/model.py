"""Training module of the language model: summed cross entropy over labeled tokens.

Shapes: B sequences, T tokens, D width, N labelled tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tuning.errors import ModelError
from tuning.training.samples import IGNORE_INDEX, Batch, EncodedSample, collate


class LanguageModel(nn.Module):
    """A causal LM whose forward gives the summed loss of the labelled tokens and their number.

    Only the positions that predict a labelled token go through the head: in persona rows that is a third of them, and
    logits over the vocabulary are what takes the memory. The model's own forward does it (`logits_to_keep`), so heads
    with scaling or soft capping stay right.
    """

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype
        self._keeps_logits = supports_logits_to_keep(model)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy summed over N labelled tokens, float32[], and N, int64[]."""
        return answer_loss(self.model, batch, self.compute_dtype, self._keeps_logits, input_ids=batch.input_ids)


def supports_logits_to_keep(model: nn.Module) -> bool:
    """Whether a model's forward takes `logits_to_keep`, which every decoder of transformers does by now."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore[reportCallIssue]
    return "logits_to_keep" in inspect.signature(base.forward).parameters


def answer_loss(
    model: nn.Module, batch: Batch, compute_dtype: torch.dtype, use_logits_to_keep: bool, **inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy summed over N labelled tokens, float32[], and N, int64[].

    Args:
        use_logits_to_keep: result of `supports_logits_to_keep`.
        inputs: `input_ids` int64[B, T] or `inputs_embeds` float[B, T, D].
    """
    targets = batch.labels[:, 1:]
    labelled = targets != IGNORE_INDEX
    positions = labelled.any(dim=0).nonzero().squeeze(1)
    if not len(positions):  # nothing to learn: one position keeps every parameter in the graph
        positions = torch.zeros(1, dtype=torch.long, device=targets.device)
    kept = {"logits_to_keep": positions} if use_logits_to_keep else {}
    with torch.autocast(targets.device.type, dtype=compute_dtype, enabled=compute_dtype != torch.float32):
        logits = model(**inputs, position_ids=batch.position_ids, use_cache=False, **kept).logits
    if not use_logits_to_keep:
        logits = logits[:, positions]
    mask = labelled[:, positions]
    if not bool(mask.any()):
        return logits.float().sum() * 0.0, mask.sum()
    loss = F.cross_entropy(logits[mask].float(), targets[:, positions][mask], reduction="sum")
    return loss, mask.sum()


@torch.no_grad()
def check_packing_isolation(module: nn.Module, samples: Sequence[EncodedSample], device: torch.device) -> None:
    """Make sure that a row's loss does not change when another row stands before it in the same sequence.

    transformers keeps packed rows apart by their position ids in every attention it knows; models that mix tokens in
    other ways (state spaces, convolutions) may not.

    Args:
        module: as the training loop takes it, in eval mode.

    Raises:
        ModelError: the rows see each other.
    """
    first, second = samples[0], samples[-1]
    together, _ = module(collate([[first, second]], 0).to(device))
    alone = sum(module(collate([[sample]], 0).to(device))[0] for sample in (first, second))
    if abs(float(together) - float(alone)) > 0.02 * abs(float(alone)) + 1e-3:
        raise ModelError("data.pack: this model lets packed rows see each other; set data.pack=false.")
