"""A recurrence against its token loop in float64, on the inputs and at the length that are timed.

Of a short sequence all of it is compared, of a longer one some stretches (``stretches.py``), each
within the one call at the timed length; everywhere else what was computed must be finite.

outputs     element by element
gradients   element by element up to ``ELEMENTWISE`` tokens, beyond that along a random direction of
            each stretch (two float64 loops, a central difference)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.draws import generator_on, normal
from wuneng.bench.gate import (
    ELEMENTWISE,
    GateResult,
    Operator,
    gradients_along,
    judge,
    relative_error,
)
from wuneng.bench.stretches import (
    Stretch,
    compared_tokens,
    cut,
    direction,
    stretches_of,
    tokens_of,
)
from wuneng.ops.wkv7.reference import wkv7_reference

__all__ = ["Oracle", "loop_tokens", "wkv7_oracle"]

_STEP = 1e-5
#: Larger results of the loop are computed anew for each arm rather than kept.
_KEPT_BYTES = 2**24


@dataclass
class Oracle:
    """What a recurrence's token loop gives on a benchmark's inputs, for all who compute it.

    Attributes:
        loop: the recurrence token by token, ``(*inputs) -> (y, ...)``.
        draw: its inputs by name, the same at every call: ``[B, T, ...]``, or one-dimensional
            parameters. The first one's dtype is the benchmarked one.
        name: what ``loop`` is, for the record.
        log_decay: what each token scales the state by, from the inputs; None where the state is
            not forgotten.
    """

    loop: Operator
    draw: Callable[[], dict[str, Tensor]]
    name: str
    log_decay: Callable[[dict[str, Tensor]], Tensor] | None = None
    _kept: dict[str, Any] = field(default_factory=dict)

    def judge(self, row: Any, operator: Operator, *, backward: bool) -> GateResult:
        """An implementation, ``operator(*inputs) -> (y, ...)``, at the timed shape."""
        named = self.draw()
        first = next(iter(named.values()))
        decay = self.log_decay and self.log_decay(named)
        parts = stretches_of(first.shape[1], decay)
        check = self._gradients if backward else self._outputs
        errors, lost = check(operator, named, parts)
        reference = self.name + (f", {tokens_of(parts)}" if parts[0].name else "")
        return judge(row, errors, first.dtype, gradients=backward, reference=reference, lost=lost)

    def _outputs(
        self, operator: Operator, named: dict[str, Tensor], parts: list[Stretch]
    ) -> tuple[dict[str, float], Callable[[], dict[str, float]]]:
        y = _no_gradients(operator, list(named.values()))
        pieces = [cut(x, parts) for x in named.values()]
        expected = self._once("y", lambda: _no_gradients(self.loop, [x.double() for x in pieces]))

        def errors_of(found: Tensor) -> dict[str, float]:
            count = len(parts)
            pairs = zip(parts, found.chunk(count), expected.chunk(count), strict=True)
            return {
                _named("y", part): relative_error(own[:, part.outputs], exact[:, part.outputs])
                for part, own, exact in pairs
            }

        def lost() -> dict[str, float]:
            return errors_of(_no_gradients(self.loop, [x.float() for x in pieces]))

        return errors_of(cut(y, parts)) | _not_finite({"y": y}), lost

    def _gradients(
        self, operator: Operator, named: dict[str, Tensor], parts: list[Stretch]
    ) -> tuple[dict[str, float], Callable[[], dict[str, float]]]:
        leaves = [x.detach().requires_grad_() for x in named.values()]
        y = operator(*leaves)[0]
        dy = _dy(y, parts)
        found = torch.autograd.grad(y, leaves, dy)
        pieces, own_dy = [cut(x, parts) for x in named.values()], cut(dy, parts)
        if y.shape[1] <= ELEMENTWISE:
            errors_of = self._elementwise(list(named), pieces, own_dy)
        else:
            errors_of = self._directional(pieces, own_dy, parts)

        def lost() -> dict[str, float]:
            single = gradients_along(self.loop, [x.float() for x in pieces], own_dy.float())
            return errors_of(single[0])

        errors = errors_of([cut(x, parts) for x in found])
        return errors | _not_finite(dict(zip(named, found, strict=True))), lost

    def _elementwise(
        self, names: list[str], pieces: list[Tensor], dy: Tensor
    ) -> Callable[[Sequence[Tensor]], dict[str, float]]:
        def compute() -> tuple[Tensor, ...]:
            return gradients_along(self.loop, [x.double() for x in pieces], dy.double())[0]

        expected = self._once("gradients", compute)

        def errors_of(gradients: Sequence[Tensor]) -> dict[str, float]:
            triples = zip(names, gradients, expected, strict=True)
            return {f"gradient of {name}": relative_error(x, e) for name, x, e in triples}

        return errors_of

    def _directional(
        self, pieces: list[Tensor], dy: Tensor, parts: list[Stretch]
    ) -> Callable[[Sequence[Tensor]], dict[str, float]]:
        """<gradient, direction> against a central difference of the float64 loop, relative to the
        root of the sum of the squared products (their sum alone may cancel)."""
        generator = generator_on(dy.device, 2)
        along = [direction(x, parts, generator) for x in pieces]

        def value(step: float) -> Tensor:
            moved = [x.double() + step * d for x, d in zip(pieces, along, strict=True)]
            weighted = _no_gradients(self.loop, moved) * dy.double()
            return torch.stack([one.sum() for one in weighted.chunk(len(parts))])

        def compute() -> Tensor:
            return (value(_STEP) - value(-_STEP)) / (2 * _STEP)

        expected = self._once("slope", compute)

        def errors_of(gradients: Sequence[Tensor]) -> dict[str, float]:
            products = [g.double() * d for g, d in zip(gradients, along, strict=True)]
            errors = {}
            for n, part in enumerate(parts):
                own = [p.chunk(len(parts))[n] if p.dim() > 1 else p for p in products]
                slope = torch.stack([p.sum() for p in own]).sum()
                scale = torch.stack([(p**2).sum() for p in own]).sum().sqrt().clamp_min(1e-30)
                errors[_named("gradient along a direction", part)] = float(
                    (slope - expected[n]).abs() / scale
                )
            return errors

        return errors_of

    def _once(self, key: str, compute: Callable[[], Any]) -> Any:
        """What the loop gives, which does not depend on who is compared with it."""
        if key in self._kept:
            return self._kept[key]
        result = compute()
        tensors = [result] if isinstance(result, Tensor) else result
        if sum(x.numel() * x.element_size() for x in tensors) <= _KEPT_BYTES:
            self._kept[key] = result
        return result


def loop_tokens(tokens: int, *, backward: bool) -> int:
    """Tokens that the loop goes over in a comparison, about; backward through one is as many as
    four. What was kept for another arm is not computed again."""
    if not backward:
        return compared_tokens(tokens)
    return (5 if tokens <= ELEMENTWISE else 2) * compared_tokens(tokens)


def wkv7_oracle(draw: Callable[[], Sequence[Tensor]]) -> Oracle:
    """Of WKV-7 on inputs r, w (log decay), k, v, a, b ``[B, T, H, N]``."""

    def named() -> dict[str, Tensor]:
        return dict(zip("rwkvab", draw(), strict=True))

    return Oracle(wkv7_reference, named, "WKV-7's token loop, float64", lambda own: own["w"])


@torch.no_grad()
def _no_gradients(loop: Operator, inputs: list[Tensor]) -> Tensor:
    y: Tensor = loop(*inputs)[0]
    return y


def _not_finite(found: dict[str, Tensor]) -> dict[str, float]:
    """Infinite errors of what is not finite at any token, also where it is not compared."""
    return {
        f"{name}, not finite": float("inf")
        for name, x in found.items()
        if not bool(torch.isfinite(x).all())
    }


def _dy(y: Tensor, parts: list[Stretch]) -> Tensor:
    """A random gradient of the outputs: of none that come after all that is compared."""
    dy = normal(y.shape, generator_on(y.device, 1)).to(y)
    dy[:, parts[-1].end :] = 0.0
    return dy


def _named(what: str, part: Stretch) -> str:
    return f"{what}, {part.name}" if part.name else what
