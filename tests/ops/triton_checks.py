"""What the WKV-7 kernels are checked against, on any device: inputs, the float64 oracle, errors.

``assert_close`` runs ``wkv7_triton`` and the token-by-token reference, in float64 and in float32,
on the same (rounded) inputs: no output and no gradient may lose more than the reference's own
roundings justify.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.precision import CHUNKED_FLOOR, assert_as_exact, operand, relative_error, rounded_again
from wuneng.ops.wkv7.reference import wkv7_reference
from wuneng.ops.wkv7.snapshots import Snapshots
from wuneng.ops.wkv7.triton_autograd import wkv7_triton

STRONGEST_DECAY = -0.6065306597126334
INPUTS = ("r", "w", "k", "v", "a", "b")


@dataclass
class Case:
    """One set of inputs ``[batch, tokens, heads, size]`` and what the operator is asked to do.

    Attributes:
        decay: "mixed" over RWKV-7's range, "none", "strongest", or "both" by channel.
        rate: a_max, the largest in-context rate; every token uses it where ``repeats`` > 0.
        repeats: length of a run of identical tokens in the middle.
        lengths: packed sequences instead of a batch; they sum to ``tokens``.
        seen: tokens before this call, per sequence: continued sequences, with a ring.
        count, every: snapshots.
        rounding: of float32 operands in the reference, where the kernel rounds them too ("tf32").
    """

    batch: int = 1
    tokens: int = 33
    heads: int = 1
    size: int = 16
    decay: str = "mixed"
    rate: float = 1.0
    repeats: int = 0
    scale: float = 1.0
    lengths: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    count: int = 0
    every: int = 16
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    seed: int = 0
    chunk: int = 0
    values: int = 0
    segments: int = 0
    rounding: torch.dtype | str | None = None
    initial: bool = True
    generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def sequences(self) -> int:
        return len(self.lengths) or self.batch

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def log_decay(self, shape: tuple[int, ...]) -> Tensor:
        w = STRONGEST_DECAY * torch.sigmoid(2 * self.normal(*shape))
        if self.decay in ("none", "both"):
            w[..., :: 1 if self.decay == "none" else 2] = 0.0
        if self.decay in ("strongest", "both"):
            w[..., 1 if self.decay == "both" else 0 :: 2 if self.decay == "both" else 1] = (
                STRONGEST_DECAY
            )
        return w

    def leaves(self) -> dict[str, Tensor]:
        """Float64 tensors that hold values the tested dtype can represent."""
        shape = (self.batch, self.tokens, self.heads, self.size)
        kappa = F.normalize(self.normal(*shape), dim=-1)
        rate = self.rate * torch.sigmoid(self.normal(*shape))
        w, r, k, v = self.log_decay(shape), *(self.normal(*shape) for _ in range(3))
        if self.repeats:
            start = (self.tokens - self.repeats) // 2
            rate[:], w[:] = 0.9 * self.rate, -0.01
            for x in (kappa, r, k, v):
                x[:, start : start + self.repeats] = x[:, start : start + 1]
        tensors = {"r": r * self.scale, "w": w, "k": k * 0.3 * self.scale, "v": v * self.scale}
        tensors |= {"a": -kappa, "b": kappa * rate}
        if self.initial:
            state = self.normal(self.sequences, self.heads, self.size, self.size)
            tensors["initial_state"] = state * self.scale
        if self.count:
            logits = self.normal(*shape[:3], 1 + self.count)
            tensors["weights"] = torch.softmax(logits, dim=-1)
        if self.seen:
            tensors["ring"] = self._ring()
        wide = ("initial_state", "ring")
        return {
            name: x.to(torch.float32 if name in wide else self.dtype).double()
            for name, x in tensors.items()
        }

    def _ring(self) -> Tensor:
        ring = self.normal(self.sequences, self.count, self.heads, self.size, self.size)
        for sequence, seen in enumerate(self.seen):
            for back in range(self.count):
                if (seen // self.every - back) * self.every <= 0:
                    ring[sequence, back] = 0.0
        return ring

    def run(self, leaves: dict[str, Tensor], operator: object, **choices: int) -> list[Tensor]:
        """y, final state and, with snapshots, the ring."""
        device = leaves["v"].device
        bounds = torch.tensor([0, *self.lengths]).cumsum(0).to(device) if self.lengths else None
        snapshots = None
        if self.count:
            position = torch.tensor(self.seen, device=device) if self.seen else None
            snapshots = Snapshots(self.every, leaves["weights"], leaves.get("ring"), position)
        outputs = operator(  # type: ignore[operator]
            *(leaves[name] for name in INPUTS),
            initial_state=leaves.get("initial_state"),
            cu_seqlens=bounds,
            snapshots=snapshots,
            **choices,
        )
        return [x for x in outputs if x is not None]

    def tested_leaves(self, exact: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same values as the operator sees them: tested dtype, float32 states, its device."""
        return {
            name: x.detach()
            .to(
                device=self.device,
                dtype=torch.float32 if name in ("initial_state", "ring") else self.dtype,
            )
            .requires_grad_()
            for name, x in exact.items()
        }


def sides(case: Case) -> list[dict[str, Tensor]]:
    """y, final state, ring and every leaf's gradient: the kernels', the token loop's in float32
    (on operands rounded as the kernels may round them) and in float64."""
    exact_leaves = {name: x.requires_grad_() for name, x in case.leaves().items()}
    tested_leaves = case.tested_leaves(exact_leaves)
    choices = {"chunk": case.chunk, "values": case.values, "segments": case.segments}
    tested = case.run(tested_leaves, wkv7_triton, **choices)
    # The incoming gradients must be representable too.
    seeds = [case.normal(*x.shape).to(x.dtype).double() for x in tested]
    rough_leaves = {
        name: _rough(case, name, x.detach()).requires_grad_() for name, x in exact_leaves.items()
    }
    return [
        _named(tested, tested_leaves, seeds),
        *(
            _named(case.run(leaves, wkv7_reference), leaves, seeds)
            for leaves in (rough_leaves, exact_leaves)
        ),
    ]


def _rough(case: Case, name: str, x: Tensor) -> Tensor:
    if name in ("initial_state", "ring"):
        return x.float()
    if case.rounding is not None:
        return rounded_again(x, case.rounding).float()
    return operand(x, case.dtype)


def _named(
    outputs: list[Tensor], leaves: dict[str, Tensor], seeds: list[Tensor]
) -> dict[str, Tensor]:
    gradients = torch.autograd.grad(
        outputs,
        list(leaves.values()),
        [seed.to(x) for seed, x in zip(seeds, outputs, strict=True)],
        materialize_grads=True,
    )
    named = dict(zip(("y", "final_state", "final_ring"), outputs, strict=False))
    named |= {"d" + name: x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach() for name, x in named.items()}


def compare(case: Case) -> dict[str, float]:
    """Largest relative error of y, the final state, the ring and every leaf's gradient."""
    found, _, exact = sides(case)
    return {name: relative_error(x, exact[name]) for name, x in found.items()}


def assert_close(case: Case, floor: float = CHUNKED_FLOOR) -> None:
    """Fail with every number of the case if a tensor loses too much."""
    assert_as_exact(*sides(case), what=case, floor=floor)
