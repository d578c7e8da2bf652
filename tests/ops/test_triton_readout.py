"""The readout's Triton kernels in the interpreter against plain autograd in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.test_state_readout import (
    EPS,
    PARTS,
    WEIGHTS,
    assert_close,
    assert_close_in_float32,
    called,
    drawn,
    sides,
)
from tests.precision import assert_as_exact
from wuneng.ops.readout import state_readout
from wuneng.ops.readout import triton_kernels as readout_triton
from wuneng.ops.readout.triton_kernels import backward_split, state_readout_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def kernel(y: Tensor, r: Tensor, key: Tensor, v: Tensor, **named: object) -> Tensor:
    optional = (named[name] for name in ("norm_weight", "norm_bias", "bonus", "gate"))
    return state_readout_triton(y, r, key, v, *optional, norm_eps=named["norm_eps"])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1, 16), (2, 37, 3, 16), (1, 16, 2, 64), (3, 5, 1, 128)])
def test_outputs_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    exact = drawn(shape, dtype, PARTS)
    tested = {name: x.detach().to(dtype).requires_grad_() for name, x in exact.items()}
    with faithful():
        assert_close(kernel, exact, tested)


@pytest.mark.parametrize("parts", [PARTS[:2], PARTS[1:], ("norm",), ("bonus",), ("gate",), ()])
def test_every_part_can_be_absent(parts: tuple[str, ...]) -> None:
    exact = drawn((2, 19, 2, 32), torch.float32, parts)
    tested = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    used = {n: x for n, x in exact.items() if n not in ("r", "key", "v") or "bonus" in parts}
    names = ["R", *("d" + name for name in used)]
    assert_as_exact(*({n: x[n] for n in names} for x in sides(kernel, exact, tested)))


@pytest.mark.parametrize("per_processor", [1, 6])
def test_programs_that_walk_over_many_tiles(
    per_processor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout_triton, "PROGRAMS_PER_PROCESSOR", per_processor)
    assert backward_split(150, 2, 1) == ((10, 1) if per_processor == 1 else (4, 3))
    assert_close_in_float32(kernel, drawn((3, 50, 2, 16), torch.float32, PARTS))


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e4])
def test_zero_tiny_and_huge(scale: float) -> None:
    assert_close_in_float32(kernel, drawn((1, 19, 2, 16), torch.float32, PARTS, scale))


def test_mixed_types_and_strides() -> None:
    exact = drawn((2, 9, 2, 16), torch.bfloat16, PARTS)
    tested = {
        name: x.detach().to(torch.float32 if name in WEIGHTS else torch.bfloat16)
        for name, x in exact.items()
    }
    tested["v"] = tested["v"].transpose(1, 2).contiguous().transpose(1, 2)
    tested["y"] = tested["y"].float()
    tested = {name: x.requires_grad_() for name, x in tested.items()}
    with faithful():
        found = called(kernel, tested)
        assert_close(kernel, exact, tested)
    assert found.dtype == torch.bfloat16


def test_no_tokens() -> None:
    leaves = {
        name: x.detach().float().requires_grad_()
        for name, x in drawn((2, 0, 2, 16), torch.float32, PARTS).items()
    }
    for operator in (kernel, state_readout):
        out = called(operator, leaves)
        assert out.shape == (2, 0, 2, 16)
        assert not any(g.any() for g in torch.autograd.grad(out.sum(), list(leaves.values())))


def test_registration_and_compile() -> None:
    leaves = {
        name: x.detach().float().requires_grad_()
        for name, x in drawn((1, 18, 2, 16), torch.float32, PARTS).items()
    }
    tensors = [leaves[name] for name in ("y", "r", "key", "v", *WEIGHTS, "gate")]
    torch.library.opcheck(torch.ops.wuneng.state_readout_triton.default, (*tensors, EPS))

    def loss(*tensors: Tensor) -> Tensor:
        return state_readout_triton(*tensors, norm_eps=EPS).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(*tensors), tensors)
    for x, y in zip(torch.autograd.grad(compiled(*tensors), tensors), eager, strict=True):
        assert torch.equal(x, y)
