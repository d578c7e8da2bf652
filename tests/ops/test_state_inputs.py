"""The fused inputs of the recurrence against plain autograd in float64."""

import pytest
import torch

from wuneng.ops.state_inputs import state_inputs, state_inputs_reference


def arguments(shape, dtype, shared, seed=0):
    g = torch.Generator().manual_seed(seed)

    def draw(*size):
        x = torch.randn(*size, generator=g, dtype=torch.float64)
        return x.to(dtype).double().requires_grad_()

    k, logit = draw(*shape), draw(*shape)
    source = k if shared else draw(*shape)
    return k, source, logit, draw(*shape[-2:]), draw(*shape[-2:])


@pytest.mark.parametrize("shared", [True, False], ids=["shared-key", "own-removal-key"])
@pytest.mark.parametrize("a_max", [1.0, 2.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("shape", [(2, 37, 3, 16), (1, 1, 1, 5)])
def test_outputs_and_gradients(shape, dtype, tolerance, a_max, shared):
    exact = arguments(shape, dtype, shared)
    tested = [x.detach().to(dtype).requires_grad_() for x in exact]
    if shared:
        tested[1] = tested[0]
    expected = state_inputs_reference(*exact, a_max)
    got = state_inputs(*tested, a_max)
    torch.manual_seed(1)
    seeds = [torch.randn_like(x) for x in expected]
    torch.autograd.backward(expected, seeds)
    torch.autograd.backward(got, [s.to(dtype) for s in seeds])
    for one, two in zip(expected, got, strict=True):
        assert two.dtype == dtype
        assert (one - two.double()).norm() <= tolerance * one.norm()
    for one, two in zip(exact, tested, strict=True):
        assert (one.grad - two.grad.double()).norm() <= 4 * tolerance * one.grad.norm()


def test_zero_key_is_finite():
    """A zero removal key has no direction: kappa is zero there, and nothing becomes NaN."""
    k = torch.zeros(1, 2, 1, 8, requires_grad=True)
    weights = torch.ones(1, 8)
    out = state_inputs(k, k, torch.zeros(1, 2, 1, 8), weights, weights, 2.0)
    sum(x.sum() for x in out).backward()
    assert all(torch.isfinite(x).all() for x in (*out, k.grad))


def test_gradcheck():
    k, source, logit, k_k, k_a = arguments((1, 3, 2, 4), torch.float64, shared=False)
    assert torch.autograd.gradcheck(
        lambda *xs: state_inputs(*xs, 2.0), (k, source, logit, k_k, k_a)
    )
