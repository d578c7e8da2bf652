"""The fused inputs of the recurrence against plain autograd in float64."""

import pytest
import torch

from tests.precision import assert_as_exact
from wuneng.ops.state_head.recurrence_inputs import recurrence_inputs, recurrence_inputs_reference


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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 37, 3, 16), (1, 1, 1, 5)])
def test_outputs_and_gradients(shape, dtype, a_max, shared):
    exact = arguments(shape, dtype, shared)
    results = []
    for operator, kind in (
        (recurrence_inputs, dtype),
        (recurrence_inputs_reference, torch.float32),
        (recurrence_inputs_reference, torch.float64),
    ):
        leaves = [x.detach().to(kind).requires_grad_() for x in exact]
        if shared:
            leaves[1] = leaves[0]
        outputs = operator(*leaves, a_max)
        torch.manual_seed(1)
        seeds = [torch.randn(x.shape, dtype=torch.float64).to(dtype).to(x) for x in outputs]
        torch.autograd.backward(outputs, seeds)
        results.append([*(x.detach() for x in outputs), *(x.grad for x in leaves)])
    assert all(x.dtype == dtype for x in results[0])
    assert_as_exact(*results)


def test_zero_key_is_finite():
    """A zero removal key has no direction: kappa is zero there, and nothing becomes NaN."""
    k = torch.zeros(1, 2, 1, 8, requires_grad=True)
    weights = torch.ones(1, 8)
    out = recurrence_inputs(k, k, torch.zeros(1, 2, 1, 8), weights, weights, 2.0)
    sum(x.sum() for x in out).backward()
    assert all(torch.isfinite(x).all() for x in (*out, k.grad))


def test_gradcheck():
    k, source, logit, k_k, k_a = arguments((1, 3, 2, 4), torch.float64, shared=False)
    assert torch.autograd.gradcheck(
        lambda *xs: recurrence_inputs(*xs, 2.0), (k, source, logit, k_k, k_a)
    )
