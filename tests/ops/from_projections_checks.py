"""Inputs for the tests of ``wkv7_from_projections`` on any device, and its comparison with float64.

The oracle is the written-out equations under plain autograd: no hand-derived backward is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.precision import CHUNKED_FLOOR, assert_as_exact, operand
from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE, recurrence_inputs_reference
from wuneng.ops.wkv7.reference import wkv7_reference

PROJECTIONS = ("r", "decay_logit", "k", "v", "rate_logit", "source")
ARGUMENTS = (*PROJECTIONS, "k_k", "k_a")


@dataclass
class ProjectionCase:
    """One call: projections ``[batch, tokens, heads, size]`` and what is asked of the operator.

    Attributes:
        shared: the removal key is made of k itself.
        decay: "mixed" over RWKV-7's range, or "none", "strongest", "both" (by channel).
        repeats: length of a run of identical tokens in the middle, removed almost completely.
        lengths: packed sequences instead of a batch; they sum to ``tokens``.
        zero_keys: every third token has no key, whose direction then does not exist.
        logit_dtype: of decay_logit, where it differs.
    """

    batch: int = 1
    tokens: int = 33
    heads: int = 1
    size: int = 16
    shared: bool = True
    a_max: float = 1.0
    decay: str = "mixed"
    repeats: int = 0
    scale: float = 1.0
    zero_keys: bool = False
    lengths: tuple[int, ...] = ()
    initial: bool = True
    dtype: torch.dtype = torch.float32
    logit_dtype: torch.dtype | None = None
    device: str = "cpu"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def dtype_of(self, name: str) -> torch.dtype:
        if name == "initial_state":
            return torch.float32
        return (self.logit_dtype or self.dtype) if name == "decay_logit" else self.dtype

    def leaves(self) -> dict[str, Tensor]:
        """Float64 tensors that hold values the tested dtype can represent."""
        shape = (self.batch, self.tokens, self.heads, self.size)
        x = {name: self.normal(*shape) for name in PROJECTIONS}
        x["decay_logit"] = self._decay_logit(x["decay_logit"])
        if self.repeats:
            run = slice((self.tokens - self.repeats) // 2, (self.tokens + self.repeats) // 2)
            for name in ("r", "k", "v", "source"):
                x[name][:, run] = x[name][:, run.start, None]
            x["rate_logit"][:], x["decay_logit"][:] = 2.2, -4.1
        for name in ("r", "k", "v", "source"):
            x[name] *= self.scale * (0.3 if name == "k" else 1.0)
        if self.zero_keys:
            x["k"][:, ::3] = x["source"][:, ::3] = 0.0
        x["k_k"] = 0.85 + 0.2 * self.normal(self.heads, self.size)
        x["k_a"] = 1.0 + 0.2 * self.normal(self.heads, self.size)
        if self.initial:
            states = (len(self.lengths) or self.batch, self.heads, self.size, self.size)
            x["initial_state"] = self.normal(*states) * self.scale
        if self.shared:
            del x["source"]
        return {name: y.to(self.dtype_of(name)).double() for name, y in x.items()}

    def _decay_logit(self, logit: Tensor) -> Tensor:
        ends = {"none": (-40.0, -40.0), "strongest": (40.0, 40.0), "both": (-40.0, 40.0)}
        if self.decay == "mixed":
            return 2 * logit
        logit[..., ::2], logit[..., 1::2] = ends[self.decay]
        return logit

    def tested_leaves(self, exact: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same values as the operator sees them."""
        return {
            name: x.detach().to(device=self.device, dtype=self.dtype_of(name)).requires_grad_()
            for name, x in exact.items()
        }

    def run(self, leaves: dict[str, Tensor], operator: Callable[..., Any]) -> list[Tensor]:
        """y, k~ and the final state of an operator with ``wkv7_from_projections``'s arguments."""
        source = leaves["k"] if self.shared else leaves["source"]
        arguments = [source if name == "source" else leaves[name] for name in ARGUMENTS]
        bounds = None
        if self.lengths:
            bounds = torch.tensor([0, *self.lengths]).cumsum(0).to(leaves["v"].device)
        state = leaves.get("initial_state")
        outputs = operator(
            *arguments, a_max=self.a_max, initial_state=state, cu_seqlens=bounds, **self.options
        )
        return list(outputs[:3])


def written_out(
    r: Tensor,
    decay_logit: Tensor,
    k: Tensor,
    v: Tensor,
    rate_logit: Tensor,
    source: Tensor,
    k_k: Tensor,
    k_a: Tensor,
    *,
    a_max: float,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    **_options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations, token by token."""
    key, a, b = recurrence_inputs_reference(k, source, rate_logit, k_k, k_a, a_max)
    w = LOG_DECAY_SCALE * torch.sigmoid(decay_logit)
    y, state, _ = wkv7_reference(
        r, w, key, v, a, b, initial_state=initial_state, cu_seqlens=cu_seqlens, snapshots=None
    )
    return y, key, state


def sides(case: ProjectionCase, operator: Callable[..., Any]) -> list[dict[str, Tensor]]:
    """y, k~, the final state and every leaf's gradient: the operator's, the equations' in float32
    (on operands rounded as the operator may round them) and in float64."""
    exact_leaves = {name: x.requires_grad_() for name, x in case.leaves().items()}
    tested_leaves = case.tested_leaves(exact_leaves)
    rough_leaves = {
        name: operand(x.detach(), case.dtype_of(name)).requires_grad_()
        for name, x in exact_leaves.items()
    }
    tested = case.run(tested_leaves, operator)
    seeds = [case.normal(*x.shape).to(x.dtype).double() for x in tested]
    named = []
    for outputs, leaves in (
        (tested, tested_leaves),
        (case.run(rough_leaves, written_out), rough_leaves),
        (case.run(exact_leaves, written_out), exact_leaves),
    ):
        gradients = torch.autograd.grad(
            outputs,
            list(leaves.values()),
            [seed.to(x) for seed, x in zip(seeds, outputs, strict=True)],
            materialize_grads=True,
        )
        both = [*zip(("y", "key", "state"), outputs, strict=True)]
        both += [("d_" + name, x) for name, x in zip(leaves, gradients, strict=True)]
        named.append({name: x.detach() for name, x in both})
    assert all(named[0]["d_" + name].dtype == case.dtype_of(name) for name in tested_leaves)
    return named


def assert_close(
    case: ProjectionCase, operator: Callable[..., Any], floor: float = CHUNKED_FLOOR
) -> None:
    """Fail with every number of the case if a tensor loses too much."""
    assert_as_exact(*sides(case, operator), what=case, floor=floor)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: object) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        return self.function(*arguments, **options)  # type: ignore[operator]
