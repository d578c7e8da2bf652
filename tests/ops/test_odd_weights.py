"""Weights of a shape that torch broadcasts: C would read past their end, so the formula runs.

They were garbage, or a corrupted heap, where somebody had put one number for all heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.small import in_pieces, small_model
from wuneng.ops import LowRank, low_rank, using

IDS = torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(5))


def _number(x: Tensor) -> nn.Parameter:
    """The first of a tensor's rows, for all of them."""
    return nn.Parameter(x.detach()[:1].clone())


def _of_state(name: str) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        setattr(layer.state_heads, name, _number(getattr(layer.state_heads, name)))

    return change


def _of_middle(name: str) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        setattr(layer.cross_head, name, _number(getattr(layer.cross_head, name)))

    return change


def _group_norm(layer: Any) -> None:
    norm = layer.cross_head.group_norm
    norm.weight = _number(norm.weight)


CASES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "decay bias": ("gated", _of_state("w0")),
    "rate bias": ("gated", _of_state("a0")),
    "gate bias": ("gated", _of_middle("gate_bias")),
    "group mix": ("gated", _of_middle("group_mix")),
    "group norm": ("gated", _group_norm),
    "alpha": ("additive", _of_middle("alpha")),
    "beta": ("additive", _of_middle("beta")),
}


@pytest.mark.parametrize("case", CASES)
def test_one_row_for_all_heads(case: str) -> None:
    kind, change = CASES[case]
    model = small_model(hidden_size=64, cross_head=kind)
    change(model.model.layers[0])
    lengths = [35, 1, 1, 1, 2]
    with using("reference"):
        wanted = in_pieces(model, IDS, lengths)
        loss = model(IDS, labels=IDS).loss
        exact = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(in_pieces(model, IDS, lengths), wanted, rtol=1e-3, atol=1e-3)
    loss = model(IDS, labels=IDS).loss
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for one, other in zip(found, exact, strict=True):
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-4)


def test_a_bias_for_all_channels() -> None:
    weights = LowRank(torch.randn(12, 5), torch.randn(5, 32), torch.ones(1))
    x = torch.randn(1, 1, 12)
    wanted = x @ weights.down @ weights.up + 1
    torch.testing.assert_close(low_rank(x, weights, size=16), wanted, rtol=1e-4, atol=1e-4)
