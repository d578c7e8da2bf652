"""When the operator over whole sequences takes the one-token step, on a CPU.

On CUDA: test_cuda_dispatch.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.head_step_cases import SITUATIONS, StepCase
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, state_head
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.state_head.step import state_head_step

state_head_module = importlib.import_module("wuneng.ops.state_head.interface")


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each call of the step by ``state_head``."""
    calls: list[int] = []

    def step(*arguments: Any, **settings: Any) -> HeadOutputs:
        calls.append(1)
        return state_head_step(*arguments, **settings)

    monkeypatch.delenv("WUNENG_BACKEND", raising=False)
    monkeypatch.setattr(state_head_module, "state_head_step", step)
    return calls


def dispatched(case: StepCase, **how: Any) -> HeadOutputs:
    inputs, weights, options, state, carry = case.arguments()
    how = {"state": state, "carry": carry, "keeps_carry": True} | how
    return state_head(inputs, weights, options, **how)


def assert_one_token(case: StepCase, found: HeadOutputs) -> None:
    """R, state and carry of the first token, no less exact than the equations in float32."""
    first = dataclasses.replace(case, tokens=1)
    # The random numbers of more tokens lie otherwise: take the case's own.
    first.inputs = {name: x[:1] for name, x in case.inputs.items()}
    first.state, first.carry = case.state, case.carry
    reference, exact = (first.plainly(dtype) for dtype in (torch.float32, torch.float64))
    assert found.carry is not None
    outputs = [found.readout.transpose(0, 1), found.state, found.carry]
    assert_as_exact(outputs, reference, exact, floor=CHUNKED_FLOOR)


def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_head_module, "is_available", lambda *_: False)


@pytest.mark.parametrize("name", ["all", "first-token", "own-removal-key", "more-key-heads"])
def test_the_operator_without_a_compiler_steps(
    name: str, stepped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    case = SITUATIONS[name]
    found = dispatched(case)
    assert stepped == [1]
    assert dispatched(case, keeps_carry=False).carry is None
    monkeypatch.setenv("WUNENG_BACKEND", "reference")
    composed = dispatched(case)
    assert len(stepped) == 2, "the formula was replaced"
    assert dispatched(case, backend="chunked").state is not None
    assert len(stepped) == 3, "one token by hand is the step"
    assert_one_token(case, found)
    assert_one_token(case, composed)


def test_float64_steps(stepped: list[int]) -> None:
    case = StepCase(dtype=torch.float64, state_dtype=torch.float64)
    assert dispatched(case).readout.dtype == torch.float64
    assert stepped == [1]


@pytest.mark.skipif(
    not state_head_module.is_available(64, torch.ones(1)), reason="no C compiler on this machine"
)
def test_the_c_kernels_come_first(stepped: list[int]) -> None:
    dispatched(StepCase(size=64))
    assert not stepped


@pytest.mark.parametrize(
    "how",
    [
        {"read": lambda y: y},
        {"cu_seqlens": torch.tensor([0, 1])},
        {"snapshots": Snapshots(16, torch.ones(1, 1, 2, 1))},
    ],
    ids=["read", "packed", "snapshots"],
)
def test_the_operator_does_not_step_where_there_is_more_to_do(
    how: dict[str, Any], stepped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    dispatched(StepCase(batch=1), **how)
    assert not stepped


@pytest.mark.parametrize("name", ["r", "k_a", "state", "carry"])
def test_the_operator_does_not_step_under_a_gradient(
    name: str, stepped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    inputs, weights, options, state, carry = StepCase().arguments()
    tensors = {"r": inputs.r, "k_a": weights.k_a, "state": state, "carry": carry}
    leaf = tensors[name]
    assert leaf is not None
    leaf.requires_grad_()
    out = state_head(inputs, weights, options, state=state, carry=carry)
    assert not stepped
    (gradient,) = torch.autograd.grad(out.readout.sum(), leaf)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        state_head(inputs, weights, options, state=state, carry=carry)
    assert stepped == [1]


def test_a_compiler_gets_the_composition(
    stepped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    case = StepCase()
    inputs, weights, options, state, carry = case.arguments()

    def step(state: Tensor, carry: Tensor) -> HeadOutputs:
        return state_head(inputs, weights, options, state=state, carry=carry, keeps_carry=True)

    expected = step(state, carry)
    assert stepped == [1]
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(state, carry)
    assert stepped == [1]
    assert_one_token(case, expected)
    assert_one_token(case, found)


def test_more_than_one_token_is_not_a_step(
    stepped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_compiler(monkeypatch)
    case = StepCase(tokens=2)
    first, second = case.token(0), case.token(1)
    inputs = type(first)(
        *(None if x is None else torch.cat([x, y], 1) for x, y in zip(first, second, strict=True))
    )
    state_head(inputs, case.weights(), case.options)
    assert not stepped
