"""Decoded tokens through C: low-rank projections, a layer's projections, the cross-head mixing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.precision import assert_as_exact
from wuneng.ops import LowRank, cross_head, head_projections, low_rank, native
from wuneng.ops.native import few_tokens

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")


def _weights(inner: int, rank: int, width: int) -> LowRank:
    return LowRank(
        torch.randn(inner, rank) / inner**0.5, torch.randn(rank, width), torch.randn(width)
    )


def _plainly(x: Tensor, weights: LowRank, tanh: bool, dtype: torch.dtype) -> Tensor:
    down, up, bias = (u.to(dtype) for u in weights)
    inner = x.to(dtype) @ down
    return bias + (inner.tanh() if tanh else inner) @ up


def _both(x: Tensor, weights: LowRank, tanh: bool) -> list[Tensor]:
    return [_plainly(x, weights, tanh, dtype) for dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize("tanh", [False, True])
@pytest.mark.parametrize("sizes", [(256, 32, 128), (250, 7, 48), (16, 33, 16), (3, 1, 176)])
@pytest.mark.parametrize("tokens", [(1, 1), (3, 1), (1, 5)])
def test_low_rank(tokens: tuple[int, int], sizes: tuple[int, int, int], tanh: bool) -> None:
    x, weights = torch.randn(*tokens, sizes[0]), _weights(*sizes)
    assert few_tokens.takes(16, 1, x, *weights)
    got = low_rank(x, weights, tanh=tanh, size=16)
    assert got.shape == (*tokens, sizes[2])
    assert_as_exact(got, *_both(x, weights, tanh))


@pytest.mark.parametrize("inner", [64, 100, 5])
def test_projections_of_one_input(inner: int) -> None:
    x, receptance = torch.randn(2, 1, inner), torch.randn(48, inner)
    decay, rate = _weights(inner, 8, 48), _weights(inner, 24, 48)
    r, w, a = head_projections(x, receptance, decay, rate, size=16)
    assert_as_exact(r, x @ receptance.T, x.double() @ receptance.double().T)
    assert_as_exact(w, *_both(x, decay, True))
    assert_as_exact(a, *_both(x, rate, False))


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("heads", [(4, 2), (2, 4), (3, 3), (1, 2)])
@pytest.mark.parametrize("kind", ["additive", "gated", "concat"])
def test_cross_head(kind: str, heads: tuple[int, int], size: int) -> None:
    attention, state = heads
    A, R = torch.randn(2, 2, attention, size), torch.randn(2, 2, state, size)
    alpha_or_matrix = torch.randn(attention, size)
    if kind != "additive":
        alpha_or_matrix = torch.randn(state, 2 * size, size) / size**0.5
    beta_or_bias = None if kind == "concat" else torch.randn(state, size)
    weights = [torch.randn(state), torch.randn(state, max(1, attention // state))]
    weights += [torch.randn(state, size), alpha_or_matrix]
    tensors = [A, R, *weights, beta_or_bias]
    assert few_tokens.takes(size, 1, *tensors)
    found = cross_head(kind, *tensors, eps=1e-5)  # type: ignore[arg-type]
    exact = [None if x is None else x.double() for x in tensors]
    sides = [cross_head(kind, *xs, eps=1e-5, backend="reference") for xs in (tensors, exact)]
    assert_as_exact(found, *sides)


def test_what_is_left_to_torch() -> None:
    x = torch.randn(1, 1, 32)
    assert few_tokens.takes(16, 1, x, None)
    assert not few_tokens.takes(16, few_tokens.MOST_PRODUCTS + 1, x)
    assert not few_tokens.takes(48, 1, x)
    assert not few_tokens.takes(16, 1, x.bfloat16())
    assert not few_tokens.takes(16, 1, x.double())
    assert not few_tokens.takes(16, 1, torch.randn(1, 1, 64)[..., ::2])
    assert not few_tokens.takes(16, 1, x.clone().requires_grad_())
    with torch.no_grad():
        assert few_tokens.takes(16, 1, x.clone().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not few_tokens.takes(16, 1, x)


def test_gradients_take_torch_and_agree() -> None:
    x, weights = torch.randn(1, 2, 40), _weights(40, 6, 16)
    leaves = LowRank(*(u.clone().requires_grad_() for u in weights))
    graded = low_rank(x, leaves, tanh=True, size=16)
    for found in (graded, low_rank(x, weights, tanh=True, size=16)):
        assert_as_exact(found, *_both(x, weights, True))
    graded.sum().backward()
    assert all(u.grad is not None for u in leaves)
