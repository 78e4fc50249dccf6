"""The causal language model as the training loop sees it.

Shapes: B sequences, T tokens, N labelled tokens, V vocabulary.
"""

import inspect
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from tuning.errors import ModelError
from tuning.samples import IGNORED, Batch, EncodedSample, collate


class LanguageModel(nn.Module):
    """A causal LM whose forward gives the summed loss of the labelled tokens and their number.

    Only the positions that predict a labelled token go through the head: in persona rows that is a third of them, and
    logits over the vocabulary are what takes the memory. The model's own forward does it (`logits_to_keep`), so heads
    with scaling or soft capping stay right.
    """

    def __init__(self, model: nn.Module, compute: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.compute = compute
        base = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
        self._keeps_logits = "logits_to_keep" in inspect.signature(base.forward).parameters

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy summed over N labelled tokens, float32[], and N, int64[]."""
        targets = batch.labels[:, 1:]
        labelled = targets != IGNORED
        positions = labelled.any(dim=0).nonzero().squeeze(1)
        if not len(positions):  # nothing to learn: one position keeps every parameter in the graph
            positions = torch.zeros(1, dtype=torch.long, device=targets.device)
        kept = {"logits_to_keep": positions} if self._keeps_logits else {}
        with torch.autocast(targets.device.type, dtype=self.compute, enabled=self.compute != torch.float32):
            logits = self.model(
                input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **kept
            ).logits
        if not self._keeps_logits:
            logits = logits[:, positions]
        mask = labelled[:, positions]
        if not bool(mask.any()):
            return logits.float().sum() * 0.0, mask.sum()
        loss = F.cross_entropy(logits[mask].float(), targets[:, positions][mask], reduction="sum")
        return loss, mask.sum()


@torch.no_grad()
def refuse_leaking_packs(model: nn.Module, compute: torch.dtype, samples: Sequence[EncodedSample]) -> None:
    """Make sure that a row's loss does not change when another row stands before it in the same sequence.

    transformers keeps packed rows apart by their position ids in every attention it knows; models that mix tokens in
    other ways (state spaces, convolutions) may not.

    Raises:
        ModelError: the rows see each other.
    """
    module = LanguageModel(model, compute)
    device = next(model.parameters()).device
    first, second = samples[0], samples[-1]
    together, _ = module(collate([[first, second]], 0).to(device))
    alone = sum(module(collate([[sample]], 0).to(device))[0] for sample in (first, second))
    if abs(float(together) - float(alone)) > 0.02 * abs(float(alone)) + 1e-3:
        raise ModelError("data.pack: this model lets packed rows see each other; set data.pack=false.")
