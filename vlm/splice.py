"""Image features inserted at the image tokens of the embeddings.

Shapes: B sequences, T tokens, I pictures, P patches, D width of the language model.
"""

import torch

from tuning.training.samples import IMAGE_TOKEN_INDEX


def insert_image_features(embeddings: torch.Tensor, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Lay projected features over the `IMAGE_TOKEN_INDEX` places of a batch, row after row (LLaVA, arXiv 2310.03744).

    Args:
        embeddings: float[B, T, D], anything where a patch stands.
        ids: int64[B, T].
        features: float[I, P, D], the pictures in the order of their patches.

    Returns:
        float[B, T, D] in the type of `embeddings`.
    """
    places = ids == IMAGE_TOKEN_INDEX
    assert int(places.sum()) == features.shape[0] * features.shape[1], "as many features as patches"
    return embeddings.masked_scatter(places.unsqueeze(-1), features.to(embeddings.dtype))
