"""Correctness before speed: what is timed is first compared with the reference.

attention   the first and last rows of the causal softmax, in float64

Recurrences are compared in ``recurrence_gate.py``, whole models in ``model_gate.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.draws import generator_on, normal

__all__ = [
    "ELEMENTWISE",
    "GateResult",
    "Operator",
    "attention_gate",
    "gradients_along",
    "judge",
    "relative_error",
]

#: Gradients are compared element by element over this many tokens.
ELEMENTWISE = 512
ROWS = 128

#: Largest error relative to the largest entry: of outputs, and of gradients.
_TOLERANCE = {
    torch.float64: (1e-9, 1e-8),
    torch.float32: (1e-4, 1e-3),
    torch.float16: (1e-2, 2e-2),
    torch.bfloat16: (4e-2, 8e-2),
}

#: How often the loss of the reference's own float32 arithmetic is allowed, where that is more.
FACTOR = 8.0

Operator = Callable[..., Any]

_SOFTMAX = "causal softmax, float64"


@dataclass(frozen=True)
class GateResult:
    """What a comparison with the reference found."""

    what: str
    operation: str
    arm: str
    seq_len: int
    error: float
    tolerance: float
    passed: bool
    detail: str = ""
    """What differs most."""
    reference: str = ""
    """What it was compared with."""

    def sentence(self) -> str:
        """For the row of a case that failed."""
        return (
            f"differs from the reference by {self.error:.1e} ({self.detail}), "
            f"allowed {self.tolerance:.0e}: not timed"
        )

    def to_json(self) -> dict[str, Any]:
        """Ready for bench.json."""
        return asdict(self)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest expected entry; NaN counts as infinite."""
    difference = (found.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    error = difference / max(scale, 1e-30)
    return error if error == error else float("inf")


def judge(
    row: Any,
    errors: dict[str, float],
    dtype: torch.dtype,
    *,
    gradients: bool = False,
    reference: str = "",
    lost: Callable[[], dict[str, float]] | None = None,
) -> GateResult:
    """The verdict of named errors, the worst of them against the dtype's tolerance.

    Args:
        lost: by the same names, what the reference itself loses in float32. Asked only where an
            error is above the tolerance: a badly conditioned case is no wrong operator.
    """
    # NaN compares as neither larger nor smaller: it would pass unseen
    found = {name: error if error == error else float("inf") for name, error in errors.items()}
    tolerance = _TOLERANCE[dtype][1 if gradients else 0]
    allowed = dict.fromkeys(found, tolerance)
    if lost is not None and max(found.values()) > tolerance:
        allowed |= {
            name: max(tolerance, FACTOR * share)
            for name, share in lost().items()
            if share < float("inf")
        }
    worst = max(found, key=lambda name: found[name] / max(allowed[name], 1e-30))
    error, tolerance = found[worst], allowed[worst]
    case = (row.what, row.operation, row.arm, row.seq_len)
    return GateResult(*case, error, tolerance, error <= tolerance, worst, reference)


def gradients_along(
    operator: Operator, inputs: list[Tensor], dy: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of all inputs for a random gradient of the first output, or ``dy``; and that."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = operator(*leaves)[0]
    if dy is None:
        dy = normal(y.shape, generator_on(y.device, 1)).to(y)
    return torch.autograd.grad(y, leaves, dy), dy


def attention_gate(
    row: Any, attend: Operator, q: Tensor, k: Tensor, v: Tensor, *, backward: bool = False
) -> GateResult:
    """Causal attention on ``[B, H, T, N]``: first and last rows; gradients over ``ELEMENTWISE``."""
    with torch.no_grad():
        found = attend(q, k, v)
        errors = {}
        for name, start in (("first rows", 0), ("last rows", max(0, q.shape[2] - ROWS))):
            rows = torch.arange(start, min(start + ROWS, q.shape[2]), device=q.device)
            expected = _softmax_rows(q.double(), k.double(), v.double(), rows)
            errors[name] = relative_error(found[:, :, rows], expected)
    if not backward:
        return judge(row, errors, q.dtype, reference=_SOFTMAX)
    inputs = [x[:, :, :ELEMENTWISE].contiguous() for x in (q, k, v)]
    rows = torch.arange(inputs[0].shape[2], device=q.device)
    gradients, dy = gradients_along(lambda *x: (attend(*x),), inputs)

    def attend_exactly(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (_softmax_rows(q, k, v, rows),)

    expected_ones, _ = gradients_along(attend_exactly, [x.double() for x in inputs], dy.double())
    for name, x, e in zip("qkv", gradients, expected_ones, strict=True):
        errors[f"gradient of {name}"] = relative_error(x, e)
    return judge(row, errors, q.dtype, gradients=True, reference=_SOFTMAX)


def _softmax_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Rows of causal attention; a single query stands after all keys."""
    keys = k.shape[2]
    visible = torch.arange(keys, device=q.device) <= rows[:, None] + keys - q.shape[2]
    scores = q[:, :, rows] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
