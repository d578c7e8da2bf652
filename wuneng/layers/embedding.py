"""The embedding of a model that scales it in the embedding's own precision (Gemma)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ScaledEmbedding"]


class ScaledEmbedding(nn.Embedding):
    """Embeddings ``[..., D]`` times the square root of D, which is rounded as the weights are."""

    def forward(self, input: Tensor) -> Tensor:
        scale = torch.tensor(self.embedding_dim**0.5, dtype=torch.float32, device=input.device)
        return super().forward(input) * scale.to(self.weight.dtype)
