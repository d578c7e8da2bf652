"""The fused token shift against the equation in float64."""

import pytest
import torch

from wuneng.ops.token_shift import token_shift, token_shift_reference


@pytest.mark.parametrize("shape", [(2, 17, 6), (1, 1, 3), (3, 2, 5)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)]
)
def test_output_and_gradients(shape, dtype, tolerance):
    torch.manual_seed(0)
    u = torch.randn(shape, dtype=dtype)
    mu = torch.rand(shape[-1], dtype=dtype)
    seed = torch.randn(shape, dtype=dtype)
    exact = [x.double().clone().requires_grad_() for x in (u, mu)]
    expected = token_shift_reference(*exact)
    expected.backward(seed.double())
    tested = [x.detach().clone().requires_grad_() for x in (u, mu)]
    got = token_shift(*tested)
    got.backward(seed)
    assert (got.double() - expected).norm() <= tolerance * expected.norm()
    for one, two in zip(exact, tested, strict=True):
        assert two.grad.dtype == dtype
        assert (one.grad - two.grad.double()).norm() <= tolerance * one.grad.norm()


def test_takes_views():
    """Attention's keys reach it as slices of a wider projection."""
    torch.manual_seed(0)
    wide = torch.randn(2, 9, 12)
    mu = torch.rand(6)
    assert torch.equal(token_shift(wide[..., 3:9], mu), token_shift(wide[..., 3:9].clone(), mu))
