"""The head's product and its loss a few rows at a time, gradients included.

The gradient of a loss by its logits is known as soon as they are, so that both products backward
run while the chunk is still in the cache, and no logits outlive their chunk (Liger Kernel,
arXiv 2410.10989; Cut Cross-Entropy, arXiv 2411.09009, recompute them). What is kept is one gradient
by the rows and one by the weight for each of the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wuneng.ops.linear_cross_entropy.reference import at_least_float32

#: From float logits ``[n, V]`` of the rows of a slice to the loss and its gradient by the logits,
#: which may be written over them.
ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]

#: Bytes of one chunk's logits: of the size of a cache on a CPU; elsewhere as much as keeps a device
#: busy with a product.
_CHUNK_BYTES = {"cpu": 4 << 20}
_CHUNK_BYTES_ELSEWHERE = 256 << 20
#: But no fewer rows than this: each chunk reads the weight twice and its gradient once.
_FEWEST_ROWS = 256


class _InChunks(torch.autograd.Function):
    """``(hidden [N, D], weight [V, D], a ChunkLoss) -> scalar``, with both gradients."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, loss_of: ChunkLoss) -> Tensor:
        by_hidden, by_weight, _ = ctx.needs_input_grad
        dtype = product_dtype(hidden)
        d_hidden = torch.empty_like(hidden) if by_hidden else None
        d_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if by_weight else None
        total = hidden.new_zeros((), dtype=_wide(dtype))
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(dtype), weight.to(dtype)
            for part in chunks(len(w), len(h), h.device):
                loss, gradient = loss_of(at_least_float32(h[part] @ w.t()), part)
                total += loss
                gradient = gradient.to(dtype)
                if d_hidden is not None:
                    d_hidden[part] = gradient @ w
                if d_weight is not None:
                    _add_product(d_weight, gradient, h[part])
                del gradient  # before there are the next chunk's logits
        # Attributes, so that backward can scale them in place and hand them over: the weight's
        # gradient is the largest tensor of a step with a large vocabulary.
        ctx.d_hidden, ctx.d_weight, ctx.weight_dtype = d_hidden, d_weight, weight.dtype
        ctx.spent = False
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if ctx.spent:
            raise RuntimeError("the loss in chunks keeps its gradients for one backward() alone")
        d_hidden, d_weight = ctx.d_hidden, ctx.d_weight
        ctx.d_hidden, ctx.d_weight, ctx.spent = None, None, True
        (scale,) = gradients
        if d_hidden is not None:
            d_hidden = d_hidden.mul_(scale)
        if d_weight is not None:
            d_weight = d_weight.mul_(scale).to(ctx.weight_dtype)
        return d_hidden, d_weight, None


def in_chunks(hidden: Tensor, weight: Tensor, loss_of: ChunkLoss) -> Tensor:
    """The sum of ``loss_of`` over chunks of ``hidden weight^T``, a scalar of at least float32."""
    loss: Tensor = _InChunks.apply(hidden, weight, loss_of)
    return loss


def chunks(words: int, rows: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover ``rows`` rows, each a chunk of logits over ``words`` words."""
    size = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES_ELSEWHERE)
    step = max(_FEWEST_ROWS, size // (4 * words))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def product_dtype(hidden: Tensor) -> torch.dtype:
    """In what autocast would have the head's product, or else what ``hidden`` is in."""
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _add_product(total: Tensor, gradient: Tensor, rows: Tensor) -> None:
    """``total += gradient^T rows``, in total's precision from chunk to chunk."""
    if total.dtype == gradient.dtype:
        total.addmm_(gradient.t(), rows)
    else:
        total += gradient.t() @ rows
