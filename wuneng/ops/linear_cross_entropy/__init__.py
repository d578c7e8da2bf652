"""The output head and the loss on its logits as one operator, which never holds large logits."""

from wuneng.ops.linear_cross_entropy.by_hand import chunks
from wuneng.ops.linear_cross_entropy.interface import (
    IGNORED,
    WHOLE_BYTES,
    linear_cross_entropy,
    linear_distillation,
)
from wuneng.ops.linear_cross_entropy.top_k import TopK, top_k_distillation, top_k_of

__all__ = [
    "IGNORED",
    "WHOLE_BYTES",
    "TopK",
    "chunks",
    "linear_cross_entropy",
    "linear_distillation",
    "top_k_distillation",
    "top_k_of",
]
