"""RMSNorm: torch's own bits, gradients from C as exact as autograd's, and who takes which."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.fast_paths import PoisonedError, poisoned
from tests.precision import assert_as_exact
from wuneng.layers.norms import RMSNorm
from wuneng.ops import native, using
from wuneng.ops.rms_norm import native as in_c
from wuneng.ops.rms_norm import rms_norm, rms_norm_reference

pytestmark = pytest.mark.skipif(native.library(64) is None, reason="no C compiler on this machine")

PATHS = ("rms_norm.native:_RMSNorm.forward", "rms_norm.native:_backward")


def drawn(*shape: int, magnitude: float = 1.0) -> list[Tensor]:
    """x, weight and the gradient of the output, other numbers at every run."""
    seed = secrets.randbelow(2**31)
    print("seed", seed)  # shown where a test fails
    generator = torch.Generator().manual_seed(seed)
    x, d_out = (torch.randn(shape, generator=generator) for _ in range(2))
    return [magnitude * x, torch.randn(shape[-1], generator=generator), d_out]


def gradients(
    norm: Callable[..., Tensor], given: list[Tensor], dtype: torch.dtype, eps: float
) -> dict[str, Tensor]:
    x, weight, d_out = (u.detach().to(dtype) for u in given)
    x.requires_grad_(), weight.requires_grad_()
    out = norm(x, weight, eps)
    d_x, d_weight = torch.autograd.grad(out, (x, weight), d_out)
    return {"out": out.detach(), "d x": d_x, "d weight": d_weight}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("magnitude", [1.0, 1e-4, 1e6])
@pytest.mark.parametrize("shape", [(1, 6), (3, 5, 7), (2, 67, 48), (1, 131, 256), (33, 1000)])
def test_values_are_torchs_and_gradients_as_exact(shape: tuple[int, ...], magnitude: float) -> None:
    given = drawn(*shape, magnitude=magnitude)
    found = gradients(rms_norm, given, torch.float32, 1e-6)
    rough = gradients(rms_norm_reference, given, torch.float32, 1e-6)
    exact = gradients(rms_norm_reference, given, torch.float64, 1e-6)
    assert torch.equal(found["out"], rough["out"])
    assert_as_exact(found, rough, exact, what=shape)


def test_the_layer_calls_it_and_follows_its_weight() -> None:
    x, weight, d_out = drawn(2, 40, 96)
    norm = RMSNorm(96, 1e-5)
    norm.weight.data.copy_(weight)
    sides = []
    for module, dtype, how in (
        (norm, torch.float32, "native"),
        (copy.deepcopy(norm), torch.float32, "reference"),
        (copy.deepcopy(norm).double(), torch.float64, "reference"),
    ):
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        with using(how):
            out = module(leaf)
        out.backward(d_out.to(dtype))
        assert leaf.grad is not None
        assert module.weight.grad is not None
        sides.append([out, leaf.grad, module.weight.grad])
    assert torch.equal(sides[0][0], sides[1][0])
    assert_as_exact(*[[u.detach() for u in side] for side in sides])


def test_the_number_of_threads_changes_no_bit() -> None:
    given, threads, runs = drawn(3, 200, 256), torch.get_num_threads(), []
    assert given[0].numel() > in_c._LEAST_WORK
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            runs.append(gradients(rms_norm, given, torch.float32, 1e-6))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(runs[0][name], x) for name, x in runs[1].items())


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_what_needs_no_gradient_gets_none(frozen: str) -> None:
    x, weight, d_out = drawn(9, 32)
    leaf = weight if frozen == "x" else x
    expected = gradients(rms_norm, [x, weight, d_out], torch.float32, 1e-6)
    leaf.requires_grad_()
    out = rms_norm(x, weight, 1e-6)
    out.backward(d_out)
    assert (x if frozen == "x" else weight).grad is None
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, expected["d weight" if frozen == "x" else "d x"])


def test_a_gradient_of_a_gradient_is_the_equations() -> None:
    def penalty(norm: Callable[..., Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, weight, d_out = (u.detach().to(dtype) for u in given)
        x.requires_grad_(), weight.requires_grad_()
        out = (norm(x, weight, 1e-6) * d_out).sum()
        d_x, d_weight = torch.autograd.grad(out, (x, weight), create_graph=True)
        return torch.autograd.grad(d_x.square().sum() + d_weight.square().sum(), (x, weight))

    given = drawn(17, 32)
    found = penalty(rms_norm, torch.float32)
    sides = (penalty(rms_norm_reference, dtype) for dtype in (torch.float32, torch.float64))
    assert_as_exact(found, *sides)


class _Wrapped(torch.Tensor):
    """A subclass, whose memory is not read past it."""


def _by_functional(x: Tensor, weight: Tensor) -> Any:
    return torch.func.grad(lambda u: rms_norm(u, weight, 1e-6).sum())(x.detach())


def _forward_mode(x: Tensor, weight: Tensor) -> Any:
    return torch.func.jvp(lambda u: rms_norm(u, weight, 1e-6), (x,), (x,))


def _cast(x: Tensor, weight: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return rms_norm(x, weight, 1e-6)


UNKNOWN: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "bfloat16": lambda x, w: rms_norm(x.bfloat16(), w, 1e-6),
    "float64": lambda x, w: rms_norm(x.double(), w.double(), 1e-6),
    "strided": lambda x, w: rms_norm(x.transpose(0, 1), w, 1e-6),
    "broadcast weight": lambda x, w: rms_norm(x, w[:1], 1e-6),
    "empty": lambda x, w: rms_norm(x[:0], w, 1e-6),
    "subclass": lambda x, w: rms_norm(x, w.as_subclass(_Wrapped), 1e-6),
    "autocast": _cast,
    "functional": _by_functional,
    "forward mode": _forward_mode,
    "no gradient": lambda x, w: rms_norm(x.detach(), w.detach(), 1e-6),
    "reference": lambda x, w: rms_norm(x, w, 1e-6, backend="reference"),
    "chunked": lambda x, w: rms_norm(x, w, 1e-6, backend="chunked"),
    "compiled": torch.compile(
        lambda x, w: rms_norm(x, w, 1e-6), fullgraph=True, backend="aot_eager"
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_it_does_not_know_goes_the_plain_way(name: str) -> None:
    x, weight, _ = drawn(4, 5, 16)
    x.requires_grad_(), weight.requires_grad_()
    with poisoned(*PATHS):
        UNKNOWN[name](x, weight)
        with pytest.raises(PoisonedError):
            rms_norm(x, weight, 1e-6)
