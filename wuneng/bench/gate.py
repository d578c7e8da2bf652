"""Correctness before speed: what is timed is first compared with the reference.

operators   WKV-7 against the token loop in float64, at the timed shape: outputs element by
            element, gradients element by element up to ``ELEMENTWISE`` tokens and beyond that
            along a random direction (two float64 loops, a central difference)
attention   the first and last rows of the causal softmax, in float64

Whole models are compared in ``model_gate.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.draws import generator_on, normal
from wuneng.ops.wkv7.reference import wkv7_reference

__all__ = [
    "GateResult",
    "attention_gate",
    "judge",
    "recurrence_gate",
    "relative_error",
    "wkv7_gate",
]

ELEMENTWISE = 512
LOOP_TOKENS = 32 * 1024
ROWS = 128
_STEP = 1e-5

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

_TOKEN_LOOP = "WKV-7's token loop, float64"
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


def wkv7_gate(row: Any, operator: Operator, inputs: Sequence[Tensor], backward: bool) -> GateResult:
    """An implementation of WKV-7, ``operator(*inputs) -> (y, ...)``, at the timed shape."""
    named = dict(zip("rwkvab", inputs, strict=True))
    return recurrence_gate(row, operator, wkv7_reference, named, _TOKEN_LOOP, backward=backward)


def recurrence_gate(
    row: Any,
    operator: Operator,
    loop: Operator,
    named: dict[str, Tensor],
    reference: str,
    *,
    backward: bool,
) -> GateResult:
    """A recurrence against its token loop, both ``(*inputs) -> (y, ...)``, at the timed shape.

    Args:
        named: inputs by name, ``[B, T, ...]`` or one-dimensional parameters; the first one's dtype
            is the benchmarked one.
        reference: what ``loop`` is, for the record.
    """
    inputs = list(named.values())
    tokens, dtype = inputs[0].shape[1], inputs[0].dtype
    if not backward:
        with torch.no_grad():
            y = operator(*inputs)[0][:, :LOOP_TOKENS]
            first = [x[:, :LOOP_TOKENS] if x.dim() > 1 else x for x in inputs]
            expected = loop(*(x.double() for x in first))[0]

        @torch.no_grad()
        def lost() -> dict[str, float]:
            return {"y": relative_error(loop(*(x.float() for x in first))[0], expected)}

        error = relative_error(y, expected)
        return judge(row, {"y": error}, dtype, reference=reference, lost=lost)
    found, dy = _gradients(operator, inputs)
    if tokens <= ELEMENTWISE:
        expected_ones, _ = _gradients(loop, [x.double() for x in inputs], dy.double())

        def errors_of(gradients: Sequence[Tensor]) -> dict[str, float]:
            return {
                f"gradient of {name}": relative_error(x, e)
                for name, x, e in zip(named, gradients, expected_ones, strict=True)
            }

    else:

        def errors_of(gradients: Sequence[Tensor]) -> dict[str, float]:
            error = _directional_error(loop, gradients, inputs, dy)
            return {"gradient along a direction": error}

    def lost_gradients() -> dict[str, float]:
        return errors_of(_gradients(loop, [x.float() for x in inputs], dy.float())[0])

    errors = errors_of(found)
    return judge(row, errors, dtype, gradients=True, reference=reference, lost=lost_gradients)


def _gradients(
    operator: Operator, inputs: Sequence[Tensor], dy: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = operator(*leaves)[0]
    if dy is None:
        dy = normal(y.shape, generator_on(y.device, 1)).to(y)
    return torch.autograd.grad(y, leaves, dy), dy


def _directional_error(
    loop: Operator, found: Sequence[Tensor], inputs: Sequence[Tensor], dy: Tensor
) -> float:
    """<gradient, direction> against a central difference of the float64 loop, relative to the
    root of the sum of the squared products (their sum alone may cancel)."""
    generator = generator_on(dy.device, 2)
    exact = [x.double() for x in inputs]
    along = [normal(x.shape, generator).to(x) for x in exact]
    products = [g.double() * d for g, d in zip(found, along, strict=True)]
    slope = sum(p.sum() for p in products)
    scale = sum((p**2).sum() for p in products)

    def value(step: float) -> Tensor:
        moved = [x + step * d for x, d in zip(exact, along, strict=True)]
        return torch.as_tensor((loop(*moved)[0] * dy.double()).sum())

    with torch.no_grad():
        expected = (value(_STEP) - value(-_STEP)) / (2 * _STEP)
        error = float((slope - expected).abs() / torch.as_tensor(scale).sqrt().clamp_min(1e-30))
    return error if error == error else float("inf")


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
    gradients, dy = _gradients(lambda *x: (attend(*x),), inputs)

    def attend_exactly(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
        return (_softmax_rows(q, k, v, rows),)

    expected_ones, _ = _gradients(attend_exactly, [x.double() for x in inputs], dy.double())
    for name, x, e in zip("qkv", gradients, expected_ones, strict=True):
        errors[f"gradient of {name}"] = relative_error(x, e)
    return judge(row, errors, q.dtype, gradients=True, reference=_SOFTMAX)


def _softmax_rows(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """Rows of causal attention; a single query stands after all keys."""
    keys = k.shape[2]
    visible = torch.arange(keys, device=q.device) <= rows[:, None] + keys - q.shape[2]
    scores = q[:, :, rows] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
