"""Snapshot reads in Triton: against products in torch, and against float64 token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.triton_checks import Case, assert_close
from tests.precision import assert_as_exact, operand
from wuneng.ops import Snapshots
from wuneng.ops.wkv7.snapshot_products import read_snapshots_in_products
from wuneng.ops.wkv7.triton_snapshots import read_snapshots
from wuneng.ops.wkv7.triton_tables import boundary_rows

CHUNK = 16


pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Reads:
    """Random r, y, stored states, weights and ring for one call, and the ways to run it."""

    def __init__(
        self,
        tokens: int,
        count: int,
        every: int = 16,
        batch: int = 1,
        heads: int = 1,
        size: int = 16,
        lengths: tuple[int, ...] = (),
        seen: tuple[int, ...] = (),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=random).to(dtype).requires_grad_()

        sequences = len(lengths) or batch
        rows = boundary_rows(tokens, CHUNK, sequences, bool(lengths), bool(seen))
        self.every, self.random = every, random
        self.bounds = torch.tensor([0, *lengths]).cumsum(0) if lengths else None
        self.position = torch.tensor(seen) if seen else None
        self.leaves = {
            "r": normal(batch, tokens, heads, size),
            "y": normal(batch, tokens, heads, size),
            "states": normal(rows, heads, size, size),
            "weights": normal(batch, tokens, heads, 1 + count),
        }
        if seen:
            ring = (sequences, count, heads, size, size)
            self.leaves["ring"] = normal(*ring, dtype=torch.float32)

    def run(self, read: object, leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        snapshots = Snapshots(self.every, leaves["weights"], leaves.get("ring"), self.position)
        r, y, states = (leaves[name] for name in ("r", "y", "states"))
        return read(r, y, states, snapshots, self.bounds, CHUNK)  # type: ignore[operator]

    def sides(self) -> list[dict[str, Tensor]]:
        """Outputs and gradients: the kernels', and the products' in float32 (on operands rounded
        as the kernels may round them) and in float64."""
        exact = {name: x.detach().double().requires_grad_() for name, x in self.leaves.items()}
        rough = {
            name: operand(exact[name].detach(), x.dtype).requires_grad_()
            for name, x in self.leaves.items()
        }
        products = read_snapshots_in_products
        calls = [(self.leaves, read_snapshots), (rough, products), (exact, products)]
        all_outputs = [self.run(read, leaves) for leaves, read in calls]
        seeds = [torch.randn(x.shape, generator=self.random).to(x.dtype) for x in all_outputs[0]]
        named = []
        for outputs, (leaves, _) in zip(all_outputs, calls, strict=True):
            # Without snapshots the products' ring depends on nothing.
            pairs = [(x, g) for x, g in zip(outputs, seeds, strict=True) if x.requires_grad]
            total = sum((x * g.to(x.dtype)).sum() for x, g in pairs)
            wanted = list(leaves.values())
            gradients = torch.autograd.grad(
                total, wanted, allow_unused=True, materialize_grads=True
            )
            both = {"mixed": outputs[0], "ring": outputs[1]}
            both |= {"d_" + name: x for name, x in zip(leaves, gradients, strict=True)}
            named.append({name: x.detach() for name, x in both.items()})
        return named


@pytest.mark.parametrize(
    "reads",
    [
        Reads(tokens=45, count=2),
        Reads(tokens=70, count=3, every=64, batch=2, heads=2, size=32),
        Reads(tokens=100, count=2, every=48),
        Reads(tokens=16, count=4),
        Reads(tokens=1, count=1, batch=3),
        Reads(tokens=33, count=0),
        Reads(tokens=0, count=2),
        Reads(tokens=33, count=2, size=128),
        Reads(tokens=33, count=1, size=64, heads=2),
        Reads(tokens=90, count=2, lengths=(1, 0, 49, 16, 24), heads=2),
        Reads(tokens=90, count=2, lengths=(90, 0, 0), every=32),
        Reads(tokens=37, count=3, batch=2, seen=(32, 5)),
        Reads(tokens=3, count=3, batch=2, seen=(40, 0), every=16),
        Reads(tokens=80, count=2, lengths=(1, 1, 28, 50), seen=(15, 16, 0, 99), every=48),
        Reads(tokens=20, count=0, batch=2, seen=(3, 16)),
        Reads(tokens=0, count=2, batch=2, seen=(3, 33)),
    ],
    ids=lambda reads: (
        "-".join(str(x) for x in (*reads.leaves["weights"].shape, f"every{reads.every}"))
        + ("-packed" if reads.bounds is not None else "")
        + ("-continued" if reads.position is not None else "")
    ),
)
def test_against_products_in_torch(reads: Reads) -> None:
    assert_as_exact(*reads.sides())


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    seen=st.lists(st.integers(0, 130), min_size=4, max_size=4),
    continued=st.booleans(),
    count=st.integers(0, 3),
    every=st.sampled_from([16, 32, 48, 64]),
    seed=st.integers(0, 1000),
)
def test_drawn_sequences(
    lengths: list[int], seen: list[int], continued: bool, count: int, every: int, seed: int
) -> None:
    own = tuple(seen[: len(lengths)]) if continued else ()
    reads = Reads(sum(lengths), count, every, lengths=tuple(lengths), seen=own, seed=seed)
    assert_as_exact(*reads.sides())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    with faithful():
        for seen in ((), (7, 32)):
            assert_as_exact(*Reads(70, 2, 32, 2, 2, seen=seen, dtype=dtype).sides())


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=100, count=2, every=48, heads=2),
        Case(tokens=70, count=2, every=64, repeats=50, rate=2.0),
        Case(batch=2, tokens=50, count=2, every=48, seen=(100, 5)),
        Case(tokens=40, count=2, scale=1e4, decay="both"),
        Case(tokens=40, count=2, scale=0.0),
    ],
    ids=["every-48", "repeated-tokens", "continued", "huge", "zero"],
)
def test_operator_against_float64(case: Case) -> None:
    assert_close(case)


def test_weights_of_another_type() -> None:
    reads = Reads(40, 2, dtype=torch.float16)
    reads.leaves["weights"] = reads.leaves["weights"].detach().float().requires_grad_()
    reads.leaves["r"] = reads.leaves["r"].detach().float().requires_grad_()
    mixed, ring = reads.run(read_snapshots, reads.leaves)
    assert mixed.dtype == torch.float16
    assert ring.dtype == torch.float32
    gradients = torch.autograd.grad(mixed.float().sum(), list(reads.leaves.values()))
    assert [g.dtype for g in gradients] == [x.dtype for x in reads.leaves.values()]
    assert_as_exact(*reads.sides())


def test_gradient_of_the_ring_alone() -> None:
    reads = Reads(40, 2, seen=(20,))
    _, ring = reads.run(read_snapshots, reads.leaves)
    wanted = [reads.leaves["states"], reads.leaves["ring"]]
    found = torch.autograd.grad(ring.square().sum(), wanted)
    _, ring = reads.run(read_snapshots_in_products, reads.leaves)
    expected = torch.autograd.grad(ring.square().sum(), wanted)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["fresh", "packed", "continued"])
def test_operator_is_registered_properly(kind: str) -> None:
    reads = Reads(
        33,
        2,
        lengths=(20, 13) if kind == "packed" else (),
        seen=(5,) if kind == "continued" else (),
    )
    named = reads.leaves
    arguments = (*(named[name] for name in ("r", "y", "states", "weights")), named.get("ring"))
    arguments += (reads.position, reads.bounds, reads.every, CHUNK)
    torch.library.opcheck(torch.ops.wuneng.wkv7_snapshot_read.default, arguments)


def test_strided_inputs_and_the_same_bits() -> None:
    reads = Reads(40, 2, heads=2, seen=(20,))
    expected = reads.run(read_snapshots, reads.leaves)
    turned = {
        name: x.detach().transpose(1, 2).contiguous().transpose(1, 2)
        for name, x in reads.leaves.items()
    }
    assert not turned["r"].is_contiguous()
    for x, y in zip(reads.run(read_snapshots, turned), expected, strict=True):
        assert torch.equal(x, y)
