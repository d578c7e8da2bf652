"""What the cross-head operator is checked against, on any device: inputs, oracle, errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.precision import FLOOR, assert_as_exact, rounded_operands, worst
from wuneng.ops.cross_head import cross_head_reference

NAMES = ("A", "R", "scale", "group_mix", "group_norm", "alpha_or_matrix", "beta_or_bias")
KINDS = ("additive", "gated", "concat")
#: (attention heads, state heads): grouped, one to one, shared.
RATIOS = ((4, 2), (6, 1), (3, 3), (2, 4), (1, 3))


@dataclass
class Case:
    """One set of inputs.

    Attributes:
        heads: attention heads and state heads.
        scales: how many lambdas, None for one a state head.
        eps: of the norm. Where a group is one head, the norm undoes the mix but for eps, and the
            mix's gradient is a small difference of large terms; a large eps keeps it well posed.
        repeats: every token is the same.
        magnitude: of A and R.
    """

    kind: str = "gated"
    batch: int = 2
    tokens: int = 7
    heads: tuple[int, int] = (4, 2)
    size: int = 16
    scales: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    eps: float = 0.3
    repeats: bool = False
    magnitude: float = 1.0
    seed: int = 0

    def leaves(self) -> dict[str, Tensor]:
        """Float64 tensors that hold values the tested dtype can represent."""
        generator = torch.Generator().manual_seed(self.seed)
        (H, S), N = self.heads, self.size
        shapes = {
            "A": (self.batch, self.tokens, H, N),
            "R": (self.batch, self.tokens, S, N),
            "scale": (self.scales or S,),
            "group_mix": (S, max(1, H // S)),
            "group_norm": (S, N),
            "alpha_or_matrix": (H, N) if self.kind == "additive" else (S, 2 * N, N),
        }
        if self.kind != "concat":
            shapes["beta_or_bias"] = (S, N)
        drawn = {n: torch.randn(s, generator=generator).double() for n, s in shapes.items()}
        if self.kind != "additive":
            drawn["alpha_or_matrix"] *= (2 * N) ** -0.5
        for name in ("A", "R"):
            drawn[name] *= self.magnitude
            if self.repeats:
                drawn[name] = drawn[name][:, :1].expand(-1, self.tokens, -1, -1)
        return {n: x.to(self.dtype).double().contiguous() for n, x in drawn.items()}

    def tested_leaves(self) -> dict[str, Tensor]:
        """The same values as the operator gets them, which gradients are asked of."""
        return {
            n: x.to(device=self.device, dtype=self.dtype).requires_grad_()
            for n, x in self.leaves().items()
        }

    def arguments(self, leaves: dict[str, Tensor]) -> list[Any]:
        return [self.kind, *(leaves.get(name) for name in NAMES)]


Run = Callable[..., tuple[Tensor, Tensor]]


def sides(case: Case, run: Run) -> list[dict[str, Tensor]]:
    """Both outputs and every leaf's gradient: ``run``'s (it takes eps by name), the equations' in
    float32 (of operands rounded as the operator may, whichever lose most) and in float64."""
    exact = case.leaves()
    wide = _results(case, cross_head_reference, exact)
    rough = [
        _results(case, cross_head_reference, leaves)
        for leaves in rounded_operands(exact, case.dtype)
    ]
    return [_results(case, run, case.tested_leaves()), worst(rough, wide), wide]


def _results(case: Case, run: Run, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    graded = {name: x.requires_grad_() for name, x in leaves.items()}
    outputs = run(*case.arguments(graded), eps=case.eps)
    generator = torch.Generator().manual_seed(case.seed + 1)
    seeds = [torch.randn(x.shape, generator=generator).to(case.dtype).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(graded.values()), seeds)
    both = {"attention": outputs[0], "branch": outputs[1]}
    both |= {"d " + name: x for name, x in zip(graded, gradients, strict=True)}
    return {name: x.detach() for name, x in both.items()}


def assert_close(
    case: Case, run: Run, floor: float = FLOOR, scales: Mapping[str, float] | None = None
) -> None:
    """Fail with every number of the case if a tensor loses too much."""
    assert_as_exact(*sides(case, run), what=case, floor=floor, scales=scales)
