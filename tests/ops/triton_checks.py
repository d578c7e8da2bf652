"""What the WKV-7 kernels are checked against, on any device: inputs, the float64 oracle, errors.

``compare`` runs ``wkv7_triton`` and the token-by-token reference in float64 on the same (rounded)
inputs and returns the relative error of every output and every gradient, so one line of a test
states what is accepted of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

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


def relative_error(tested: Tensor, exact: Tensor) -> float:
    """||tested - exact|| / ||exact||; without the divisor where exact is zero; NaN is infinite."""
    difference = (tested.detach().cpu().double() - exact).norm()
    norm = exact.norm()
    error = float(difference / norm if norm > 0 else difference)
    return error if error == error else float("inf")


def compare(case: Case) -> dict[str, float]:
    """Relative error of y, the final state, the ring and every leaf's gradient."""
    exact_leaves = {name: x.requires_grad_() for name, x in case.leaves().items()}
    tested_leaves = case.tested_leaves(exact_leaves)
    exact = case.run(exact_leaves, wkv7_reference)
    choices = {"chunk": case.chunk, "values": case.values, "segments": case.segments}
    tested = case.run(tested_leaves, wkv7_triton, **choices)
    names = ["y", "final_state", "final_ring"][: len(exact)]
    errors = {
        name: relative_error(x, y.detach()) for name, x, y in zip(names, tested, exact, strict=True)
    }
    weights = [case.normal(*x.shape) for x in exact]
    # The incoming gradients must be representable too.
    weights = [g.to(x.dtype).double() for g, x in zip(weights, tested, strict=True)]
    exact_gradients = torch.autograd.grad(
        exact, list(exact_leaves.values()), weights, materialize_grads=True
    )
    tested_gradients = torch.autograd.grad(
        tested,
        list(tested_leaves.values()),
        [g.to(x) for g, x in zip(weights, tested, strict=True)],
    )
    for name, x, y in zip(exact_leaves, tested_gradients, exact_gradients, strict=True):
        errors["d" + name] = relative_error(x, y)
    return errors


def assert_close(case: Case, limit: float) -> None:
    """Fail with every error of the case if one is above ``limit``."""
    errors = compare(case)
    worst = max(errors, key=lambda name: errors[name])
    listing = ", ".join(f"{name} {error:.1e}" for name, error in errors.items())
    assert errors[worst] <= limit, f"{worst} is off by more than {limit:.0e}: {listing}"
