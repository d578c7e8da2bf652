"""The cross-head operator by hand against plain autograd in float64, and who takes which path."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.ops.cross_head_cases import KINDS, RATIOS, Case, assert_close
from tests.precision import assert_as_exact
from wuneng.kinds import load_kind
from wuneng.layers.middle.base import MiddleHeads
from wuneng.ops import using
from wuneng.ops.cross_head import cross_head, cross_head_reference
from wuneng.ops.cross_head import forward as cross_head_forward

by_hand = partial(cross_head, backend="chunked")


@pytest.fixture(params=[False, True], ids=["one-tile", "tiles"])
def _tiles(request: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in one tile, or in tiles of 8 tokens, the last of one."""
    if request.param:
        monkeypatch.setattr(cross_head_forward, "TILE_NUMBERS", 1)
        monkeypatch.setattr(cross_head_forward, "FEWEST_TOKENS", 8)


@pytest.fixture
def _poisoned() -> Iterator[None]:
    """Memory that nobody has written holds NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_tiles", "_poisoned")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("heads", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_every_gradient(kind: str, heads: tuple[int, int], dtype: torch.dtype) -> None:
    for batch, tokens, size in ((1, 1, 5), (1, 65, 64)):
        case = Case(kind, batch, tokens, heads, size, dtype=dtype)
        assert_close(case, by_hand)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "change",
    [
        {"scales": 1},
        {"repeats": True, "tokens": 40},
        {"magnitude": 1e6},
        {"magnitude": 1e-6},
        {"eps": 1e-6},
        {"heads": (16, 2), "size": 8, "batch": 5},
    ],
    ids=str,
)
def test_situations(kind: str, change: dict[str, Any]) -> None:
    """As close as plain autograd in the same precision, where that is not close itself."""
    assert_close(replace(Case(kind), **change), by_hand)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_and_huge_inputs_are_finite(kind: str) -> None:
    for magnitude in (0.0, 1e15):
        case = Case(kind, magnitude=magnitude, eps=1e-6)
        leaves = case.tested_leaves()
        outputs = by_hand(*case.arguments(leaves), eps=case.eps)
        gradients = torch.autograd.grad(
            outputs, list(leaves.values()), [*map(torch.ones_like, outputs)]
        )
        assert all(torch.isfinite(x).all() for x in (*outputs, *gradients))


@pytest.mark.parametrize("heads", [(4, 2), (2, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, heads: tuple[int, int]) -> None:
    case = Case(kind, 1, 3, heads, 4, dtype=torch.float64)
    leaves = case.tested_leaves()

    def run(*tensors: torch.Tensor) -> Any:
        return by_hand(*case.arguments(dict(zip(leaves, tensors, strict=True))), eps=case.eps)

    assert torch.autograd.gradcheck(run, tuple(leaves.values()))


@pytest.mark.parametrize("tokens", [1, 2, 300])
@pytest.mark.parametrize("heads", RATIOS)
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind: str, heads: tuple[int, int], tokens: int) -> None:
    """One token, a few, and many: three ways through the operator."""
    case = Case(kind, 1 if tokens == 1 else 2, tokens, heads)
    rough = case.arguments(case.tested_leaves())
    exact = cross_head_reference(*case.arguments(case.leaves()), eps=case.eps)
    with torch.no_grad():
        found = by_hand(*rough, eps=case.eps)
        reference = cross_head_reference(*rough, eps=case.eps)
    assert_as_exact(found, reference, exact)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("used", [0, 1])
def test_one_output_alone(kind: str, used: int) -> None:
    case = Case(kind, dtype=torch.float64)
    gradients = []
    for run in (cross_head_reference, by_hand):
        leaves = case.tested_leaves()
        output = run(*case.arguments(leaves), eps=case.eps)[used]
        gradients.append(
            torch.autograd.grad(
                output.square().sum(),
                list(leaves.values()),
                materialize_grads=True,
                allow_unused=True,
            )
        )
    for x, y in zip(*gradients, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12)


def test_threads_may_change_before_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **settings: Any) -> Any:
        monkeypatch.setattr(cross_head_forward, "FEWEST_TOKENS", 4)
        monkeypatch.setattr(cross_head_forward, "TILE_NUMBERS", 1)
        outputs = by_hand(*arguments, **settings)
        monkeypatch.setattr(cross_head_forward, "FEWEST_TOKENS", 5)
        return outputs

    assert_close(Case(tokens=19), run)


def test_strided_inputs() -> None:
    def turned(*arguments: Any, **settings: Any) -> Any:
        kind, A, R, *others = arguments
        A = A.transpose(1, 2).contiguous().transpose(1, 2)
        R = R.transpose(0, 1).contiguous().transpose(0, 1)
        return by_hand(kind, A, R, *others, **settings)

    for kind in KINDS:
        assert_close(Case(kind), turned)


def test_the_same_inputs_give_the_same_bits() -> None:
    case = Case(tokens=300)
    runs = []
    for _ in range(2):
        leaves = case.tested_leaves()
        outputs = by_hand(*case.arguments(leaves), eps=case.eps)
        total = sum(x.square().sum() for x in outputs)
        runs.append([*outputs, *torch.autograd.grad(total, list(leaves.values()))])
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bfloat16", "autocast", "mixed"])
def test_half_precision_takes_the_plain_form(kind: str, precision: str) -> None:
    leaves = Case(kind).tested_leaves()
    if precision == "bfloat16":
        leaves = {name: x.bfloat16() for name, x in leaves.items()}
    elif precision == "mixed":
        leaves["A"] = leaves["A"].bfloat16()
    arguments = Case(kind).arguments(leaves)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        found = cross_head(*arguments, eps=1e-6)
        expected = cross_head_reference(*arguments, eps=1e-6)
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_graph_break(kind: str) -> None:
    case = Case(kind)
    arguments = case.arguments(case.tested_leaves())
    run = torch.compile(partial(cross_head, eps=case.eps), fullgraph=True, backend="aot_eager")
    reference = cross_head_reference(*arguments, eps=case.eps)
    exact = cross_head_reference(*case.arguments(case.leaves()), eps=case.eps)
    assert_as_exact(run(*arguments), reference, exact)


def test_the_environment_and_the_argument_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case()
    arguments = case.arguments(case.tested_leaves())

    def grad_name(**settings: Any) -> str:
        return type(cross_head(*arguments, eps=1e-6, **settings)[1].grad_fn).__name__

    by_hand_name = grad_name()
    assert by_hand_name != grad_name(backend="reference")
    monkeypatch.setenv("WUNENG_BACKEND", "reference")
    assert grad_name() == grad_name(backend="reference")
    assert grad_name(backend="chunked") == by_hand_name
    with using("chunked"):
        assert grad_name() == by_hand_name


def test_unknown_names() -> None:
    case = Case()
    arguments = case.arguments(case.tested_leaves())
    with pytest.raises(ValueError, match="backend must be one of reference, chunked, native"):
        cross_head(*arguments, eps=1e-6, backend="cuda")
    with pytest.raises(ValueError, match="kind must be one of additive, gated, concat"):
        cross_head("none", *arguments[1:], eps=1e-6)


@pytest.mark.parametrize("tokens", [1, 9, 300])
def test_attention_that_is_not_changed_keeps_its_bits(tokens: int) -> None:
    """A conversion keeps every logit: attention goes on as it came, alpha = 0 adds nothing."""
    for kind in KINDS:
        case = Case(kind, tokens=tokens)
        leaves = case.tested_leaves()
        if kind == "additive":
            leaves["alpha_or_matrix"].data.zero_()
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                attention, _ = cross_head(*case.arguments(leaves), eps=case.eps)
            assert torch.equal(attention, leaves["A"].flatten(-2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", RATIOS)
def test_the_layer_hands_over_its_parameters(kind: str, heads: tuple[int, int]) -> None:
    config = SimpleNamespace(
        cross_head=kind,
        num_attention_heads=heads[0],
        num_state_heads=heads[1],
        state_head_dim=8,
        state_output_scale="head",
        rms_norm_eps=1e-6,
        hidden_size=12,
    )
    layer = load_kind("middle", kind)(config)
    own = {"additive": ["alpha", "beta"], "gated": ["gate_weight", "gate_bias"]}
    assert [name for name, _ in layer.named_parameters()] == [
        *("scale", "group_mix", *own.get(kind, ["mid_weight"])),
        *("group_norm.weight", "branch_proj.weight"),
    ]
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    A, R = torch.randn(2, 5, heads[0] * 8), torch.randn(2, 5, heads[1], 8)
    attention, branch = layer(A, R)

    def plainly(layer: MiddleHeads, dtype: torch.dtype) -> list[torch.Tensor]:
        A_out, R_out = layer.interaction(A.to(dtype), R.to(dtype), backend="reference")
        return [A_out, layer.branch_proj(R_out)]

    reference = plainly(layer, torch.float32)
    exact = plainly(copy.deepcopy(layer).double(), torch.float64)
    assert_as_exact((attention, branch), reference, exact)
    (attention.sum() + branch.sum()).backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_no_tokens() -> None:
    for kind in KINDS:
        case = Case(kind, tokens=0)
        leaves = case.tested_leaves()
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                outputs = by_hand(*case.arguments(leaves), eps=case.eps)
            assert [x.shape for x in outputs] == [(2, 0, 64), (2, 0, 64)]
        outputs = by_hand(*case.arguments(leaves), eps=case.eps)
        total = sum(x.sum() for x in outputs)
        assert not any(x.any() for x in torch.autograd.grad(total, list(leaves.values())))
