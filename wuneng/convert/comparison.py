"""How far the logits of two models are apart, and whether that is close enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.probe import Answers
from wuneng.errors import RunError

__all__ = ["Check", "VerificationError", "compare", "informative", "require_all", "worst"]

#: How often the loss of the source's own float32 arithmetic a converted model may lose, where that
#: loss is known: another order of sums on another processor, and a badly conditioned model.
FACTOR = 8.0
#: Allowed |difference| of a logit, relative to the largest |logit| or 1.
TOLERANCE = {
    torch.float64: 1e-5,
    torch.float32: 1e-5,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-11,
}


@dataclass(frozen=True)
class Check:
    """One way of asking, in one dtype.

    Attributes:
        name: the way of asking.
        dtype: what both models computed in.
        positions: tokens at which logits were compared.
        max_abs_logit_difference: the largest.
        argmax_agreement: share of positions with the same likeliest token.
        kl: mean Kullback-Leibler divergence of the new model from the source, in nats a token.
        tolerance: what the largest difference may be; None where it is only reported.
    """

    name: str
    dtype: str
    positions: int
    max_abs_logit_difference: float
    argmax_agreement: float
    kl: float
    tolerance: float | None

    @property
    def passed(self) -> bool:
        """Whether the difference is within tolerance (NaN is not)."""
        return self.tolerance is None or self.max_abs_logit_difference <= self.tolerance

    def record(self) -> dict[str, Any]:
        """The check as plain values."""
        return {**asdict(self), "passed": self.passed}


class VerificationError(RunError):
    """The converted model does not compute what the source does."""

    def __init__(self, message: str, checks: Sequence[Check]) -> None:
        super().__init__(message)
        self.checks = list(checks)


def compare(
    expected: Answers,
    got: Answers,
    dtype: torch.dtype,
    *,
    exact: Answers | None = None,
    slack: float = 1.0,
) -> list[Check]:
    """One check for each way of asking.

    Args:
        exact: the source's answers in float64, which show what ``expected`` itself has lost: a
            logit may be off by ``FACTOR`` times that, if it is more than the tolerance.
        slack: multiplies the tolerance, where the two sides do not run the same operations and
            ``exact`` is not known.
    """
    checks = []
    for name, answer in expected.items():
        check = _check(name, answer, got[name], str(dtype), TOLERANCE[dtype] * slack)
        if exact is not None and check.tolerance is not None:
            lost = (answer.double() - exact[name].double()).abs().max().item()
            check = replace(check, tolerance=max(check.tolerance, FACTOR * lost))
        checks.append(check)
    return checks


def informative(name: str, expected: Tensor, got: Tensor, dtype: str) -> Check:
    """A comparison that is reported but cannot fail."""
    return _check(name, expected, got, dtype, None)


def worst(checks: Sequence[Check]) -> dict[str, float]:
    """The figures of convert.json over the checks that count: the worst of each."""
    counting = [check for check in checks if check.tolerance is not None]
    return {
        "max_abs_logit_difference": max(c.max_abs_logit_difference for c in counting),
        "argmax_agreement": min(c.argmax_agreement for c in counting),
        "kl": max(c.kl for c in counting),
    }


def require_all(checks: Sequence[Check]) -> None:
    """Raise VerificationError if a check failed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        first = failed[0]
        raise VerificationError(
            f"the converted model differs from its source: {first.name} ({first.dtype}): a logit "
            f"is off by {first.max_abs_logit_difference:.3g}, allowed {first.tolerance:.3g}; "
            f"{len(failed)} of {len(checks)} checks failed. Nothing was written.",
            checks,
        )


def _check(name: str, expected: Tensor, got: Tensor, dtype: str, relative: float | None) -> Check:
    if expected.shape != got.shape:
        raise VerificationError(
            f"{name}: the source gives logits {list(expected.shape)}, the converted model "
            f"{list(got.shape)}. Nothing was written.",
            [],
        )
    difference = (expected - got).abs().max().item()
    if torch.isnan(expected).any() or torch.isnan(got).any():
        difference = float("nan")
    scale = max(1.0, expected.abs().max().item())
    agree = (expected.argmax(-1) == got.argmax(-1)).float().mean().item()
    return Check(
        name=name,
        dtype=dtype.removeprefix("torch."),
        positions=expected.shape[0],
        max_abs_logit_difference=difference,
        argmax_agreement=agree,
        kl=_kl(expected, got),
        tolerance=None if relative is None else relative * scale,
    )


def _kl(expected: Tensor, got: Tensor) -> float:
    """Mean over positions, in float64 and a few rows at a time (vocabularies are large)."""
    total = 0.0
    for p, q in zip(expected.split(16), got.split(16), strict=True):
        log_p, log_q = (u.double().log_softmax(-1) for u in (p, q))
        total += (log_p.exp() * (log_p - log_q)).sum().item()
    return max(0.0, total / expected.shape[0])
