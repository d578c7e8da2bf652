"""Inputs for the WKV-7 tests, and the comparison of a backend with the float64 recurrence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7
from wuneng.ops.wkv7.snapshots import boundary

INPUT_NAMES = ("r", "w", "k", "v", "a", "b")
FASTEST_LOG_DECAY = -0.6065306597126334
Backend = Callable[..., tuple[Tensor, ...]]


@dataclass
class Case:
    """One call: float64 leaves, from which every compared run is made.

    Attributes:
        lengths: the documents' lengths in one row, or None for a batch.
        every: snapshots at multiples of it; 0 for none. ``count`` of them.
        position: tokens each sequence has seen before, or None.
    """

    batch: int = 1
    tokens: int = 37
    heads: int = 2
    size: int = 8
    decay: str = "random"
    a_max: float = 1.0
    identical: int = 0
    scale: float = 1.0
    lengths: Sequence[int] | None = None
    initial_state: bool = False
    every: int = 0
    count: int = 0
    position: Sequence[int] | None = None
    seed: int = 0
    leaves: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.lengths is not None:
            self.batch, self.tokens = 1, sum(self.lengths)
        random = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=random, dtype=torch.float64)

        shape = (self.batch, self.tokens, self.heads, self.size)
        r, x, k, v, direction, rate = (normal(*shape) for _ in range(6))
        if self.identical:
            # A run in the middle: the same token again and again, removed almost completely.
            run = slice(self.tokens // 4, self.tokens // 4 + self.identical)
            for y in (r, k, v, direction):
                y[:, run] = y[:, run.start, None]
            rate[:, run], x[:, run] = 2.2, -4.1
        kappa = F.normalize(direction, dim=-1)
        log_w = {
            "random": FASTEST_LOG_DECAY * torch.sigmoid(2 * x),
            "slow": torch.full_like(x, -1e-6),
            "fast": torch.full_like(x, FASTEST_LOG_DECAY),
            "mixed": torch.where(x > 0, FASTEST_LOG_DECAY, -1e-6),
        }[self.decay]
        values = (
            self.scale * r,
            log_w,
            0.3 * self.scale * k,
            v,
            -kappa,
            self.a_max * torch.sigmoid(rate) * kappa,
        )
        self.leaves = dict(zip(INPUT_NAMES, values, strict=True))
        states = (self.sequences, self.heads, self.size, self.size)
        if self.initial_state:
            self.leaves["initial_state"] = normal(*states)
        if self.every:
            weights = normal(*shape[:3], 1 + self.count)
            self.leaves["weights"] = weights.softmax(-1)
            if self.position is not None:
                self.leaves["ring"] = self._ring(normal(states[0], self.count, *states[1:]))

    @property
    def sequences(self) -> int:
        return self.batch if self.lengths is None else len(self.lengths)

    def _ring(self, ring: Tensor) -> Tensor:
        """A ring as a call would have left it: zero where there is no boundary yet."""
        assert self.position is not None
        for sequence, seen in enumerate(self.position):
            for j in range(self.count):
                if boundary(seen, j, self.every) <= 0:
                    ring[sequence, j] = 0
        return ring

    def run(self, leaves: dict[str, Tensor], backend: str | Backend) -> tuple[Tensor, ...]:
        """Call the operator on ``leaves``."""
        snapshots = None
        if self.every:
            position = None if self.position is None else torch.tensor(self.position)
            snapshots = Snapshots(self.every, leaves["weights"], leaves.get("ring"), position)
        options = {
            "initial_state": leaves.get("initial_state"),
            "cu_seqlens": None if self.lengths is None else boundaries(self.lengths),
            "snapshots": snapshots,
        }
        inputs = [leaves[name] for name in INPUT_NAMES]
        if isinstance(backend, str):
            return wkv7(*inputs, **options, backend=backend)
        return backend(*inputs, **options)

    def values_and_gradients(
        self, backend: str | Backend, dtype: torch.dtype, input_dtype: torch.dtype | None = None
    ) -> dict[str, Tensor]:
        """Outputs, and gradients of a fixed random combination of all of them, by name."""
        leaves = {}
        for name, x in self.leaves.items():
            own = (input_dtype or dtype) if name in INPUT_NAMES else dtype
            leaves[name] = x.to(own).requires_grad_()
        outputs = self.run(leaves, backend)
        random = torch.Generator().manual_seed(self.seed + 1)
        loss = torch.zeros((), dtype=torch.float64)
        for output in outputs:
            weight = torch.randn(output.shape, generator=random, dtype=torch.float64)
            loss = loss + (output.double() * weight).sum()
        grads = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        named = dict(zip(("y", "state", "ring"), outputs, strict=False))
        named |= {f"d_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {name: x.detach() for name, x in named.items()}


def boundaries(lengths: Sequence[int]) -> Tensor:
    """``cu_seqlens`` of documents of these lengths."""
    return torch.tensor([0, *lengths]).cumsum(0)


def assert_matches(
    case: Case, backend: str | Backend = "chunked", floor: float = CHUNKED_FLOOR
) -> None:
    """float32 outputs and all gradients as close to float64 as the recurrence's in float32."""
    sides = [
        case.values_and_gradients(how, dtype)
        for how, dtype in (
            (backend, torch.float32),
            ("reference", torch.float32),
            ("reference", torch.float64),
        )
    ]
    assert_as_exact(*sides, what=case, floor=floor, scales=scales_of(sides[-1]))


def scales_of(exact: dict[str, Tensor]) -> dict[str, float]:
    """What roundings are measured against where a tensor is tiny beside the others.

    A thousandth of the largest of its kind, outputs or gradients; for d_w, which is a difference of
    sums as large as the other gradients and may cancel to nothing, a tenth.
    """
    largest = {
        kind: max(
            (
                float(x.abs().max())
                for name, x in exact.items()
                if name.startswith("d_") == kind and x.numel()
            ),
            default=0.0,
        )
        for kind in (False, True)
    }
    return {
        name: (0.1 if name == "d_w" else 1e-3) * largest[name.startswith("d_")] for name in exact
    }
