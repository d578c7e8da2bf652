"""Which kernel CUDA tensors reach, without a GPU: tensors that have a device but no memory."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("triton", reason="Triton is not installed")

from wuneng.ops import (
    HeadInputs,
    HeadOptions,
    HeadWeights,
    head_step,
    head_step_triton,
    readout_triton,
    state_head,
    token_shift_triton,
)
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.head_step import state_head_step
from wuneng.ops.plain import PLAIN_TYPES
from wuneng.ops.readout import state_readout
from wuneng.ops.token_shift import token_shift


class Recording(TorchDispatchMode):
    """The names of the project's own operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.namespace == "wuneng":
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.setattr("wuneng.ops.plain.PLAIN_TYPES", PLAIN_TYPES | {FakeTensor})
    with FakeTensorMode(), Recording() as recording:
        yield recording.names


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, device="cuda", dtype=dtype)


def test_readout(called: list[str]) -> None:
    y, r, key, v, gate = (drawn(2, 9, 3, 64) for _ in range(5))
    weight, bias, bonus = (drawn(3, 64, dtype=torch.float32) for _ in range(3))
    out = state_readout(
        y, r, key, v, norm_weight=weight, norm_bias=bias, norm_eps=1e-5, bonus=bonus, gate=gate
    )
    assert (out.shape, out.dtype) == (v.shape, v.dtype)
    assert called == ["state_readout_triton"]


def test_token_shift(called: list[str]) -> None:
    u, mu = drawn(2, 9, 20), drawn(20)
    assert token_shift(u, mu).shape == u.shape
    assert called == ["token_shift_triton"]


def test_what_the_kernels_do_not_take() -> None:
    x = torch.ones(1, 1, 1, 20)
    for u in (x, x.double()):
        assert not readout_triton.takes(u, u, u, u, None)
    assert not token_shift_triton.takes(x.double(), x)
    fits = torch.ones(1, 1, 1, 64)
    assert readout_triton.takes(fits, fits, fits, fits, None)
    assert not readout_triton.takes(fits, fits, fits, fits, fits.double())


def test_what_the_step_does_not_take() -> None:
    x = torch.ones(1, 1, 64)
    inputs, weights, options = HeadInputs(*[x] * 5), HeadWeights(k_k=x, k_a=x), HeadOptions(1, 64)
    takes = head_step_triton.takes
    assert takes(inputs, weights, options, None)
    assert takes(inputs._replace(r=x.half()), weights._replace(mu_r=x.bfloat16()), options, x)
    assert not takes(inputs, weights, options._replace(heads=2, size=32 + 1), None)
    assert not takes(inputs._replace(gate=x.double()), weights, options, None)
    assert not takes(inputs, weights._replace(bonus=x.double()), options, None)
    assert not takes(inputs, weights, options, x.double())


def head_arguments(size: int, tokens: int = 1) -> tuple[HeadInputs, HeadWeights, HeadOptions]:
    """Two sequences, three heads; r, w and a are slices of one row, v has a head too many."""
    width = 3 * size
    r, w, a = drawn(2, tokens, 3 * width).split(width, dim=-1)
    inputs = HeadInputs(r, w, drawn(2, tokens, width), drawn(2, tokens, 4 * size), a)
    weights = HeadWeights(
        mu_k=drawn(width), k_k=drawn(width), k_a=drawn(width, dtype=torch.float32)
    )
    return inputs, weights, HeadOptions(3, size, letters="k")


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
def test_state_head_step(called: list[str], started: bool, in_place: bool) -> None:
    state = drawn(2, 3, 64, 64, dtype=torch.float32) if started else None
    carry = drawn(2, 3 * 64) if started else None
    out = state_head_step(*head_arguments(64), state, carry, in_place=in_place)
    assert (out.readout.shape, out.readout.dtype) == ((2, 1, 3, 64), torch.bfloat16)
    assert (out.state.shape, out.state.dtype) == ((2, 3, 64, 64), torch.float32)
    assert out.carry is not None
    assert (out.carry.shape, out.carry.dtype) == ((2, 3 * 64), torch.bfloat16)
    same = started and in_place
    assert (out.state is state, out.carry is carry) == (same, same)
    assert called == ["state_head_step_" if same else "state_head_step"]


def run_operator(size: int = 64, tokens: int = 1, **how: Any) -> HeadOutputs:
    state = drawn(2, 3, size, size, dtype=torch.float32)
    how = {"state": state, "carry": drawn(2, 3 * size), "keeps_carry": True} | how
    return state_head(*head_arguments(size, tokens), **how)


@pytest.mark.parametrize("keeps_carry", [True, False])
def test_one_token_of_the_operator(called: list[str], keeps_carry: bool) -> None:
    out = run_operator(keeps_carry=keeps_carry)
    assert called == ["state_head_step"]
    assert (out.carry is not None) == keeps_carry


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What runs in the kernel's place: fake tensors cannot be indexed in a torch without CUDA."""
    names: list[str] = []

    def torch_step(*_: Any) -> HeadOutputs:
        names.append("torch")
        return HeadOutputs(torch.ones(1), torch.ones(1))

    def composed(*_: Any) -> HeadOutputs:
        names.append("composed")
        return HeadOutputs(torch.ones(1), torch.ones(1))

    monkeypatch.delenv("WUNENG_BACKEND", raising=False)
    monkeypatch.setattr(head_step, "_torch_step", torch_step)
    monkeypatch.setattr(importlib.import_module("wuneng.ops.state_head"), "_composed", composed)
    return names


@pytest.mark.parametrize(
    ("how", "instead"),
    [({"size": 20}, "torch"), ({"tokens": 2}, "composed"), ({"read": lambda y: y}, "composed")],
)
def test_what_is_no_step_of_the_kernel(
    called: list[str], others: list[str], how: dict[str, Any], instead: str
) -> None:
    run_operator(keeps_carry=False, **how)
    assert not called
    assert others == [instead]


@pytest.mark.parametrize("backend", ["", "triton", "chunked", "reference"])
def test_a_backend_asked_for_by_name(
    called: list[str], others: list[str], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WUNENG_BACKEND", backend)
    run_operator(keeps_carry=False)
    kernel = backend in ("", "triton")
    assert called == ["state_head_step"] * kernel
    assert others == ["composed"] * (not kernel)


def test_gradients_take_the_composition(called: list[str], others: list[str]) -> None:
    assert not run_operator().readout.requires_grad
    state = drawn(2, 3, 64, 64, dtype=torch.float32).requires_grad_()
    run_operator(state=state, keeps_carry=False)
    assert others == ["composed"]
    with torch.no_grad():
        run_operator(state=state)
    assert called == ["state_head_step"] * 2


def test_a_compiler_keeps_the_step(others: list[str]) -> None:
    """Without a graph break, as one operator and nothing else."""
    with FakeTensorMode():
        given = (*head_arguments(64), drawn(2, 3, 64, 64, dtype=torch.float32), drawn(2, 3 * 64))

    def step(*given: Any) -> HeadOutputs:
        inputs, weights, options, state, carry = given
        return state_head(inputs, weights, options, state=state, carry=carry, keeps_carry=True)

    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    out = torch.compile(step, fullgraph=True, backend=backend)(*given)
    assert out.state.shape == given[3].shape
    (graph,) = graphs
    called = [node for node in graph.graph.nodes if node.op == "call_function" and node.users]
    targets = [str(node.target) for node in called]
    steps = [target for target in targets if "getitem" not in target and "grad" not in target]
    assert steps == ["wuneng.state_head_step"]
    assert not others
