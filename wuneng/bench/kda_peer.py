"""Cases of ``ops`` for Kimi Delta Attention (arXiv 2510.26692) by flash-linear-attention's kernels.

It stands beside WKV-7 with as many heads of the same size. Its removal key is its write key, and
one number a head is its rate, where WKV-7 has a vector: it is the recurrence that those kernels
are written for, and the nearest to WKV-7 that is widely used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.bench import roofline
from wuneng.bench.draws import generator_on, normal
from wuneng.bench.engine import Case, Prepared
from wuneng.bench.gate import GateResult
from wuneng.bench.peers import kda_scan
from wuneng.bench.recurrence_gate import Oracle
from wuneng.bench.shapes import OperatorShapes, prepared
from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE
from wuneng.ops.wkv7.reference import wkv7_reference

__all__ = ["kda_case", "kda_inputs", "kda_reference"]

_NAMES = ("q", "k", "v", "g", "beta")


def kda_reference(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Kimi Delta Attention token by token, as the WKV-7 that it is a case of::

        S_t = S_{t-1} diag(e^{g_t}) (I - beta_t k_t k_t^T) + beta_t v_t k_t^T        y_t = S_t q_t

    Args:
        q, k, v, g: ``[B, T, H, N]``, g the log decay; beta: ``[B, T, H]``.

    Returns:
        y ``[B, T, H, N]`` and the state ``[B, H, N, N]`` (value, key).
    """
    written = beta[..., None] * k
    y, state, *_ = wkv7_reference(q, g, written, v, -g.exp() * k, written)
    return y, state


def kda_inputs(shapes: OperatorShapes, seed: int) -> list[Tensor]:
    """q, k, v, g, beta: keys of length 1, decays as strong as WKV-7's, which the kernels allow."""
    generator = generator_on(shapes.device, seed)
    shape = (shapes.batch, shapes.tokens, shapes.heads, shapes.size)
    q, k, v, decay = (normal(shape, generator) for _ in range(4))
    g = LOG_DECAY_SCALE * torch.sigmoid(decay)
    beta = torch.sigmoid(normal(shape[:3], generator))
    inputs = (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta)
    return [x.to(shapes.device, shapes.dtype) for x in inputs]


def kda_case(shapes: OperatorShapes, operation: str, *, backward: bool) -> Case:
    """The chunked scan, with the gradients of all five inputs if ``backward``."""
    row = shapes.row(operation, "fla-kda")

    def named() -> dict[str, Tensor]:
        return dict(zip(_NAMES, kda_inputs(shapes, 0), strict=True))

    def prepare() -> Prepared:
        scan = kda_scan(shapes.device)
        sets = [kda_inputs(shapes, seed) for seed in range(shapes.sets(4))]
        return prepared(scan, sets, backward, output_like=2)

    def gate() -> GateResult:
        scan = kda_scan(shapes.device)
        name = "Kimi Delta Attention token by token, float64"
        oracle = Oracle(kda_reference, named, name, log_decay=lambda x: x["g"])
        return oracle.judge(row, scan, backward=backward)

    sizes = (shapes.batch, shapes.tokens, shapes.heads, shapes.size, shapes.element)
    work = roofline.kda(*sizes, backward=backward)
    return Case(row, shapes.batch * shapes.tokens, work, prepare, gate, int(work.bytes))
