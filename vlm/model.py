"""Training module of LLaVA: tower features, projector and language model.

Shapes: B sequences, T tokens, I pictures, P patches, V width of the tower, D width of the language model.
"""

from collections.abc import Sequence

import torch
from torch import nn

from llm.generation import autocast_to
from llm.model import answer_loss, supports_logits_to_keep
from tuning.training.samples import Batch
from vlm.features import FeatureSource
from vlm.projector import Projector
from vlm.splice import insert_image_features


class VisionLanguageModel(nn.Module):
    """LLaVA for training: projected tower features replace the image tokens in the embeddings.

    Args:
        language: a causal language model, with an adapter or without.
        features: by picture number; a module with parameters if the tower is trained.
        compute_dtype: of matrix products.
    """

    def __init__(
        self, language: nn.Module, projector: Projector, features: FeatureSource, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.language = language
        self.projector = projector
        self.features = features
        self.compute_dtype = compute_dtype
        self._keeps_logits = supports_logits_to_keep(language)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy summed over N labelled tokens, float32[], and N, int64[]."""
        embeddings = self.embed(batch.input_ids, batch.picture_ids)
        if self.training and not batch.picture_ids:  # devices wait for gradients of every trained parameter
            for name, parameter in self.named_parameters():
                if parameter.requires_grad and not name.startswith("language."):
                    embeddings = embeddings + 0.0 * parameter.sum().to(embeddings.dtype)
        return answer_loss(self.language, batch, self.compute_dtype, self._keeps_logits, inputs_embeds=embeddings)

    def embed(self, ids: torch.Tensor, pictures: Sequence[int]) -> torch.Tensor:
        """int64[B, T] with image tokens, and I picture numbers -> float[B, T, D].

        Text ids are embedded by the language model; without pictures, tower and projector do not run.
        """
        embeddings = self.language.get_input_embeddings()(ids.clamp(min=0))  # pyright: ignore[reportCallIssue]
        if not pictures:
            return embeddings
        with autocast_to(self.compute_dtype, ids.device):
            features = self.features(pictures).to(ids.device)
            # Outside autocast nothing would bring a cached half to the projector's type.
            projected = self.projector(features.to(self.projector.linear_1.weight.dtype))
        return insert_image_features(embeddings, ids, projected)
