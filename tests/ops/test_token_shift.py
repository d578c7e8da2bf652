"""The fused token shift against the equation in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.precision import assert_as_exact
from wuneng.ops.token_shift import token_shift, token_shift_reference


def sides(
    shift: Callable[..., Tensor], u: Tensor, mu: Tensor, *, rounds: bool = False
) -> list[list[Tensor]]:
    """Output and both gradients: ``shift``'s, and the equation's in float32 and in float64.

    Args:
        rounds: ``shift`` computes in its tensors' dtype, and so does the plain equation then.
    """
    seed = torch.randn(u.shape).to(u.dtype).to(u.device)
    wide = [x.detach().cpu().double() for x in (u, mu)]
    rough = [x.to(u.dtype) if rounds else x.float() for x in wide]
    results = []
    for operator, values in (
        (shift, (u, mu)),
        (token_shift_reference, rough),
        (token_shift_reference, wide),
    ):
        leaves = [x.detach().requires_grad_() for x in values]
        out = operator(*leaves)
        results.append([out.detach(), *torch.autograd.grad(out, leaves, seed.to(out))])
    assert [x.dtype for x in results[0]] == [u.dtype, u.dtype, mu.dtype]
    return results


@pytest.mark.parametrize("shape", [(2, 17, 6), (1, 1, 31), (3, 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_and_gradients(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    u, mu = torch.randn(shape, dtype=dtype), torch.rand(shape[-1], dtype=dtype)
    rounds = dtype == torch.bfloat16
    assert_as_exact(*sides(token_shift, u, mu, rounds=rounds))


def test_takes_views():
    """Attention's keys reach it as slices of a wider projection."""
    torch.manual_seed(0)
    wide = torch.randn(2, 9, 12)
    mu = torch.rand(6)
    assert torch.equal(token_shift(wide[..., 3:9], mu), token_shift(wide[..., 3:9].clone(), mu))
