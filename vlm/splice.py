"""Image features inserted at the image tokens of the embeddings.

Shapes: B sequences, T tokens, I pictures, P patches, D width of the language model.
"""

import torch

from tuning.training.samples import IMAGE_TOKEN_INDEX


def insert_image_features(embeddings: torch.Tensor, ids: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """Replace the `IMAGE_TOKEN_INDEX` positions of a batch by projected features, row by row (arXiv 2310.03744).

    Args:
        embeddings: float[B, T, D]; values at image tokens are ignored.
        ids: int64[B, T].
        features: float[I, P, D], pictures in the order of their image tokens.

    Returns:
        float[B, T, D] in the dtype of `embeddings`.
    """
    places = ids == IMAGE_TOKEN_INDEX
    assert int(places.sum()) == features.shape[0] * features.shape[1], "as many features as patches"
    return embeddings.masked_scatter(places.unsqueeze(-1), features.to(embeddings.dtype))
