"""Training module of LLaVA: tower features, projector and language model.

Shapes: B sequences, T tokens, I pictures, P patches, V width of the tower, D width of the language model.
"""

from collections.abc import Sequence

import torch
from torch import nn

from llm.generation import autocast_to
from llm.model import answer_loss
from tuning.training.samples import IMAGE_TOKEN_INDEX, Batch
from vlm.features import FeatureSource
from vlm.projector import Projector


class VisionLanguageModel(nn.Module):
    """LLaVA for training: projected tower features replace the image tokens in the embeddings.

    Args:
        language: a causal language model, with an adapter or without.
        features: features by picture number; a module with parameters if the tower is trained.
        compute_dtype: dtype of matrix products.
    """

    def __init__(
        self, language: nn.Module, projector: Projector, features: FeatureSource, compute_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.language = language
        self.projector = projector
        self.features = features
        self.compute_dtype = compute_dtype

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """float32[] cross entropy, summed over N labelled tokens, and int64[] N."""
        embeddings = self.embed(batch.input_ids, batch.picture_ids)
        if self.training and not batch.picture_ids:  # processes wait for the gradient of every trained parameter
            for name, parameter in self.named_parameters():
                if parameter.requires_grad and not name.startswith("language."):
                    embeddings = embeddings + 0.0 * parameter.sum().to(embeddings.dtype)
        return answer_loss(self.language, batch, self.compute_dtype, inputs_embeds=embeddings)

    def embed(self, ids: torch.Tensor, pictures: Sequence[int]) -> torch.Tensor:
        """int64[B, T] ids with image tokens, and I picture numbers -> float[B, T, D].

        Without pictures, tower and projector do not run.
        """
        embeddings = self.language.get_input_embeddings()(ids.clamp(min=0))  # pyright: ignore[reportCallIssue]
        if not pictures:
            return embeddings
        with autocast_to(self.compute_dtype, ids.device):
            features = self.features(pictures).to(ids.device)
            # Cached features are fp16; without autocast, nothing else casts them to the projector's dtype.
            projected = self.projector(features.to(self.projector.linear_1.weight.dtype))
        return insert_image_features(embeddings, ids, projected)


def insert_image_features(embeddings: torch.Tensor, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Replace the embeddings at `IMAGE_TOKEN_INDEX` by projected features, row by row (arXiv 2310.03744).

    Args:
        embeddings: float[B, T, D]; values at image tokens are ignored.
        ids: int64[B, T].
        features: float[I, P, D], pictures in the order of their image tokens.

    Returns:
        float[B, T, D] in the dtype of `embeddings`.
    """
    image_tokens = ids == IMAGE_TOKEN_INDEX
    assert int(image_tokens.sum()) == features.shape[0] * features.shape[1], "one image token for each patch"
    return embeddings.masked_scatter(image_tokens.unsqueeze(-1), features.to(embeddings.dtype))
