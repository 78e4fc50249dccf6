"""Training module of the language model: summed cross entropy over labeled tokens.

Shapes: B sequences, T tokens, D width, N labelled tokens.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from llm.generation import autocast_to
from tuning.errors import ModelError
from tuning.training.samples import IGNORE_INDEX, Batch, EncodedSample, collate


class LanguageModel(nn.Module):
    """A causal LM whose forward returns the summed loss of the labelled tokens and their number."""

    def __init__(self, model: nn.Module, compute_dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute_dtype = compute_dtype

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy summed over N labelled tokens, float32[], and N, int64[]."""
        return answer_loss(self.model, batch, self.compute_dtype, input_ids=batch.input_ids)


def answer_loss(
    model: nn.Module, batch: Batch, compute_dtype: torch.dtype, **inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy summed over N labelled tokens, float32[], and N, int64[].

    Logits over the vocabulary need most of the memory, and in persona rows a third of the positions predict a labelled
    token. So the head computes only these positions. The model's own forward selects them (`logits_to_keep`), so that
    heads with scaling or soft capping stay correct.

    Args:
        inputs: `input_ids` int64[B, T] or `inputs_embeds` float[B, T, D].
    """
    targets = batch.labels[:, 1:]
    labelled = targets != IGNORE_INDEX
    positions = labelled.any(dim=0).nonzero().squeeze(1)
    if not len(positions):  # no labelled token: one position keeps every parameter in the graph
        positions = torch.zeros(1, dtype=torch.long, device=targets.device)
    with autocast_to(compute_dtype, targets.device):
        logits = model(**inputs, position_ids=batch.position_ids, use_cache=False, logits_to_keep=positions).logits
    mask = labelled[:, positions]
    if not bool(mask.any()):
        return logits.float().sum() * 0.0, mask.sum()
    loss = F.cross_entropy(logits[mask].float(), targets[:, positions][mask], reduction="sum")
    return loss, mask.sum()


@torch.no_grad()
def check_packing_isolation(module: nn.Module, samples: Sequence[EncodedSample], device: torch.device) -> None:
    """Check that a row's loss does not change when another row precedes it in the same sequence.

    transformers separates packed rows by their position ids in all of its attention functions. Models that mix tokens
    in other ways (state spaces, convolutions) may not separate them.

    Args:
        module: the training module, in eval mode.

    Raises:
        ModelError: the rows are not separated.
    """
    first, second = samples[0], samples[-1]
    together, _ = module(collate([[first, second]], 0).to(device))
    alone = sum(module(collate([[sample]], 0).to(device))[0] for sample in (first, second))
    if abs(float(together) - float(alone)) > 0.02 * abs(float(alone)) + 1e-3:
        raise ModelError("data.pack: this model does not separate packed rows; set data.pack=false.")
