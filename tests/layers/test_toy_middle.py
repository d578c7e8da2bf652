"""A kind of middle heads in one class: its formula runs, and no fast path is given it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import initialization as init

from tests.model.small import BASE, disturbed, in_pieces, plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM, kinds
from wuneng.kinds import load_kind, register
from wuneng.layers.middle import base
from wuneng.layers.middle.base import MiddleHeads
from wuneng.model import counting
from wuneng.model.parameter_groups import groups_of


class Product(MiddleHeads):
    """Mid = weight * A^g * R."""

    matrices = frozenset({"product_weight"})

    def add_weights(self) -> None:
        self.product_weight = nn.Parameter(torch.empty(self.heads, self.head_dim))

    def initialise_weights(self, config: Any) -> None:
        init.ones_(self.product_weight)

    def formula(self, A: Tensor, grouped: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        return A, self.product_weight * grouped * R


@pytest.fixture(autouse=True, scope="module")
def registered() -> Iterator[None]:
    """As ``@register("middle", "product")`` over the class does, but for these tests alone."""
    register("middle", "product")(Product)
    yield
    del kinds._REGISTERED["middle"]["product"]


def model_of(**changes: Any) -> WuNengForCausalLM:
    torch.manual_seed(0)
    config = WuNengConfig(**(BASE | {"cross_head": "product"} | changes))
    return disturbed(WuNengForCausalLM(config).eval())


def test_its_formula_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def sent(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a fast path was given a kind that it does not know")

    for name in ("cross_head", "cross_head_reference"):
        monkeypatch.setattr(base, name, sent)
    model = model_of()
    layer = model.model.layers[0].cross_head
    A, R = torch.randn(2, 5, 32), torch.randn(2, 5, 2, 8)
    changed, branch = layer.interaction(A, R)
    assert torch.equal(changed, A)
    grouped = (A.view(2, 5, 2, 2, 8) * layer.group_mix[..., None]).sum(-2)
    grouped = nn.functional.rms_norm(grouped, (8,), eps=1e-5) * layer.group_norm.weight
    expected = torch.cat(
        [(R * layer.scale[:, None]).flatten(-2), (layer.product_weight * grouped * R).flatten(-2)],
        dim=-1,
    )
    torch.testing.assert_close(branch, expected)
    ids = torch.arange(20)[None]
    plain = plainly(model, lambda m: in_pieces(m, ids, [20]))
    for lengths in ([20], [9, 1, 1, 9]):
        assert_as_exact(in_pieces(model, ids, lengths), *plain, lengths, floor=CHUNKED_FLOOR)
    model.train()(ids, labels=ids).loss.backward()
    assert layer.product_weight.grad.abs().sum() > 0


def test_it_is_counted_and_optimised() -> None:
    model = model_of()
    config = model.config
    parts = counting.parameters_by_part(config)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters())
    assert parts["middle heads"] > 0
    none = counting.forward_flops_per_token(WuNengConfig(**(BASE | {"cross_head": "none"})), 64)
    per_layer = 2 * (2 * 8 + 2 * 8 * 32)  # the product, and Mid's columns of the branch
    assert counting.forward_flops_per_token(config, 64) == pytest.approx(none + 2 * per_layer)
    assert groups_of(model)["model.layers.0.cross_head.product_weight"] == "no_decay"


@pytest.mark.parametrize("kind", ["gated", "concat", "additive"])
def test_a_formula_is_the_operators(kind: str) -> None:
    """Whose fast paths are compared with it elsewhere."""
    torch.manual_seed(1)
    layer = load_kind("middle", kind)(WuNengConfig(**(BASE | {"cross_head": kind})))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    A, R = torch.randn(2, 5, 32), torch.randn(2, 5, 2, 8)
    through_operator = layer.interaction(A, R, "chunked")  # by hand
    type(layer).operator, operator = None, type(layer).operator
    try:
        by_formula = layer.interaction(A, R)
    finally:
        type(layer).operator = operator
    for found, expected in zip(by_formula, through_operator, strict=True):
        torch.testing.assert_close(found, expected)
