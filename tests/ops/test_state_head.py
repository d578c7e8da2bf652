"""State heads from projections to readout: the C kernels and the composition against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.state_head_cases import (
    Case,
    arguments,
    make,
    needs_compiler,
    operator,
    oracle,
    results,
)
from tests.precision import CHUNKED_FLOOR, FLOOR, assert_as_exact
from wuneng.ops import state_head, wkv7

#: Gradients of the outputs that each case is tried with.
DRAWS = 4
BACKENDS = [pytest.param("native", marks=needs_compiler), "chunked"]


CASES = {
    "whole": Case(),
    "bare": Case(letters="", gate=False, bonus=False, norm=False, state=False),
    "one token": Case(tokens=1),
    "chunk and a tail of one": Case(tokens=17, batch=1),
    "two chunks": Case(tokens=32, carry=False),
    "a_max 2": Case(a_max=2.0, tokens=50),
    "own removal key": Case(own_source=True, letters="kr"),
    "only v shifts": Case(letters="v", gate=False),
    "no state": Case(state=False, carry=False, tokens=5),
    "small heads": Case(size=16, heads=5),
    "heads of 32": Case(size=32, heads=3, tokens=40),
    "heads of 128": Case(size=128, heads=1, tokens=21),
    "more key heads": Case(extra_heads=2),
    "packed": Case(lengths=(1, 0, 16, 23, 5)),
    "packed, from nothing": Case(lengths=(7, 33), state=False, carry=False),
    "runs of one token": Case(tokens=150, batch=1, repeats=40, carry=False),
    "slow decay": Case(decay=-12.0, tokens=100, batch=1),
    "fast decay": Case(decay=5.0, tokens=60),
    "large": Case(scale=30.0, tokens=20),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_outputs_and_every_gradient(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUNENG_BACKEND", backend)
    case = CASES[name]
    exact = make(case)
    rough = {n: x.float() for n, x in exact.items()}
    shapes = [x.shape for x in oracle(case, rough)[:2]]
    draws = [(torch.randn(shapes[0]), torch.randn(shapes[1])) for _ in range(DRAWS)]
    found = over_draws(case, rough, operator, draws)
    if "carry" in found:
        exact_carry = oracle(case, rough)[2]
        assert exact_carry is not None
        assert torch.equal(found["carry"][0], exact_carry)
    sides = (found, *(over_draws(case, tensors, oracle, draws) for tensors in (rough, exact)))
    assert_as_exact(*sides, what=case, floor=FLOOR if backend == "native" else CHUNKED_FLOOR)


def over_draws(
    case: Case, tensors: dict[str, Tensor], function: Any, draws: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Every result for each of the output gradients. Where the norm cancels what a token's
    gradient would be, all that is left is how the sums were rounded; one draw of the formula may be
    a lucky one, and the worst of several is what it loses in this case."""
    found = [results(case, tensors, function, seeds) for seeds in draws]
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


@needs_compiler
@pytest.mark.parametrize("threads", [2, 3])
def test_the_same_bits_whatever_the_threads(threads: int) -> None:
    case = Case(heads=3, tokens=40)
    tensors = {n: x.float().requires_grad_(n != "carry") for n, x in make(case).items()}

    def results() -> list[Tensor]:
        out = state_head(**arguments(case, tensors))
        leaves = [x for n, x in tensors.items() if n != "carry"]
        return [out.readout, out.state, *torch.autograd.grad(out.readout.square().sum(), leaves)]

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = results()
        torch.set_num_threads(threads)
        assert all(torch.equal(x, y) for x, y in zip(expected, results(), strict=True))
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_token_by_token_gives_the_bits_of_one_call() -> None:
    case = Case(tokens=20, state=False, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    whole = state_head(**arguments(case, tensors))
    steps, state, carry = [], None, None
    for t in range(case.tokens):
        now = {n: x[:, t : t + 1] if x.dim() == 3 else x for n, x in tensors.items()}
        given = arguments(case, now) | {"state": state, "carry": carry}
        out = state_head(**given)
        steps.append(out.readout)
        state, carry = out.state, out.carry
    assert torch.equal(torch.cat(steps, dim=1), whole.readout)
    assert torch.equal(state, whole.state)
    assert torch.equal(carry, whole.carry)


@needs_compiler
def test_the_given_state_is_not_overwritten() -> None:
    case = Case(tokens=3)
    tensors = {n: x.float() for n, x in make(case).items()}
    kept = {n: tensors[n].clone() for n in ("state", "carry")}
    state_head(**arguments(case, tensors))
    assert all(torch.equal(tensors[n], x) for n, x in kept.items())


@needs_compiler
def test_views_are_read_where_they_lie() -> None:
    """Slices of one wide projection, and a transposed batch, give what their copies give."""
    case = Case(heads=2, gate=False, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    expected = state_head(**arguments(case, tensors)).readout
    names = ["r", "w", "k", "v", "a"]
    wide = torch.cat([tensors[n] for n in names], dim=-1)
    sliced = dict(zip(names, wide.split(128, dim=-1), strict=True))
    assert torch.equal(state_head(**arguments(case, tensors | sliced)).readout, expected)
    turned = {n: tensors[n].transpose(0, 1).contiguous().transpose(0, 1) for n in names}
    assert torch.equal(state_head(**arguments(case, tensors | turned)).readout, expected)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    case = Case(tokens=30)
    tensors = {n: x.to(dtype) if n != "state" else x.float() for n, x in make(case).items()}
    out = state_head(**arguments(case, tensors))
    wide = state_head(**arguments(case, {n: x.float() for n, x in tensors.items()}))
    assert out.readout.dtype == dtype
    assert out.carry is not None
    assert out.carry.dtype == dtype
    assert out.state.dtype == torch.float32
    assert torch.equal(out.readout, wide.readout.to(dtype))
    leaf = tensors["k"].clone().requires_grad_()
    state_head(**arguments(case, tensors | {"k": leaf})).readout.sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert leaf.grad.isfinite().all()


@needs_compiler
def test_nan_stays_in_its_own_sequence_and_head_and_is_not_hidden() -> None:
    case = Case(tokens=20, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    clean = state_head(**arguments(case, tensors)).readout
    for name in ("r", "w", "k", "v", "a"):
        poisoned = tensors[name].clone()
        poisoned[1, 7, 70] = float("nan")  # sequence 1, head 1
        out = state_head(**arguments(case, tensors | {name: poisoned})).readout
        assert out[1, 7, 1].isnan().any(), name
        assert torch.equal(out[0], clean[0])
        assert torch.equal(out[1, :, 0], clean[1, :, 0])
        assert torch.equal(out[1, :7, 1], clean[1, :7, 1])


@needs_compiler
def test_zero_and_huge_inputs_stay_finite() -> None:
    case = Case(tokens=9, carry=False)
    tensors = {n: x.float() for n, x in make(case).items()}
    for factor in (0.0, 1e8):
        now = {n: x * factor if x.dim() == 3 else x for n, x in tensors.items()}
        leaves = {n: x.clone().requires_grad_() for n, x in now.items()}
        out = state_head(**arguments(case, leaves)).readout
        out.sum().backward()
        assert out.isfinite().all()
        assert all(x.grad.isfinite().all() for x in leaves.values())


@pytest.mark.parametrize("bounds", [[0, 5, 9], [0, 8, 6, 10], [1, 10]])
@needs_compiler
def test_bad_boundaries_are_refused(bounds: list[int]) -> None:
    x = torch.randn(1, 10, 2, 64)
    with pytest.raises(ValueError, match="cu_seqlens must be non-decreasing from 0 to T = 10"):
        wkv7(x, -x.abs(), x, x, x, x, cu_seqlens=torch.tensor(bounds), backend="native")


@needs_compiler
def test_no_tokens_and_no_sequences() -> None:
    x = torch.randn(2, 0, 3, 64)
    state = torch.randn(2, 3, 64, 64)
    y, after = wkv7(x, x, x, x, x, x, initial_state=state, backend="native")
    assert y.shape == x.shape
    assert torch.equal(after, state)
    x = torch.randn(0, 4, 3, 64, requires_grad=True)
    y, after = wkv7(x, x, x, x, x, x, backend="native")
    y.sum().backward()
    assert after.shape == (0, 3, 64, 64)
