"""The token shift's Triton kernels in the interpreter against the equation in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.test_token_shift import sides
from tests.precision import assert_as_exact
from wuneng.ops.token_shift import triton_kernels as kernels
from wuneng.ops.token_shift.triton_kernels import token_shift_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def assert_close(u: Tensor, mu: Tensor) -> None:
    """Output and both gradients; ``u`` and ``mu`` are in the tested dtype."""
    with faithful():
        results = sides(token_shift_triton, u, mu)
    assert_as_exact(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 37, 6), (1, 1, 3), (3, 16, 128), (1, 17, 130)])
def test_output_and_gradients(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert_close(torch.randn(shape).to(dtype), torch.rand(shape[-1]).to(dtype))


@pytest.mark.parametrize("per_processor", [1, 3])
def test_programs_that_walk_over_many_tiles(
    per_processor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "PROGRAMS_PER_PROCESSOR", per_processor)
    assert kernels.backward_split(9, 1, 1) == (9 // per_processor, per_processor)
    torch.manual_seed(0)
    assert_close(torch.randn(3, 40, 20), torch.rand(20))


@pytest.mark.parametrize("scale", [0.0, 1e-8, 1e18])
def test_zero_tiny_and_huge(scale: float) -> None:
    torch.manual_seed(0)
    assert_close(scale * torch.randn(1, 19, 8), torch.tensor([0.0, 1.0] * 4))


def test_slices_are_not_copied_and_mu_may_be_wider() -> None:
    torch.manual_seed(0)
    wide = torch.randn(2, 9, 12).to(torch.bfloat16)
    assert_close(wide[..., 3:9], torch.rand(6))
    assert_close(wide.transpose(1, 2), torch.rand(9))


def test_no_tokens() -> None:
    u, mu = torch.randn(2, 0, 4, requires_grad=True), torch.rand(4, requires_grad=True)
    out = token_shift_triton(u, mu)
    assert out.shape == u.shape
    assert not torch.autograd.grad(out.sum(), mu)[0].any()


def test_registration_and_compile() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(1, 18, 5, requires_grad=True), torch.rand(5, requires_grad=True)]
    torch.library.opcheck(torch.ops.wuneng.token_shift_triton.default, tuple(inputs))

    def loss(u: Tensor, mu: Tensor) -> Tensor:
        return token_shift_triton(u, mu).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    eager = torch.autograd.grad(loss(*inputs), inputs)
    for x, y in zip(torch.autograd.grad(compiled(*inputs), inputs), eager, strict=True):
        assert torch.equal(x, y)
