"""Which kernel CUDA tensors reach, without a GPU: tensors that have a device but no memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.memoryless import called, called_unasked, drawn, head_arguments, others, run_operator
from wuneng.ops import HeadInputs, HeadOptions, HeadWeights, backend, state_head, using
from wuneng.ops.head_arguments import HeadOutputs
from wuneng.ops.readout import state_readout
from wuneng.ops.readout import triton_kernels as readout_kernels
from wuneng.ops.state_head import triton_step
from wuneng.ops.state_head.step import state_head_step
from wuneng.ops.token_shift import token_shift
from wuneng.ops.token_shift import triton_kernels as shift_kernels


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
        assert not readout_kernels.takes(u, u, u, u, None)
    assert not shift_kernels.takes(x.double(), x)
    fits = torch.ones(1, 1, 1, 64)
    assert readout_kernels.takes(fits, fits, fits, fits, None)
    assert not readout_kernels.takes(fits, fits, fits, fits, fits.double())


def test_what_the_step_does_not_take() -> None:
    x = torch.ones(1, 1, 64)
    inputs, weights, options = HeadInputs(*[x] * 5), HeadWeights(k_k=x, k_a=x), HeadOptions(1, 64)
    takes = triton_step.takes
    assert takes(inputs, weights, options, None)
    assert takes(inputs._replace(r=x.half()), weights._replace(mu_r=x.bfloat16()), options, x)
    assert not takes(inputs, weights, options._replace(heads=2, size=32 + 1), None)
    assert not takes(inputs._replace(gate=x.double()), weights, options, None)
    assert not takes(inputs, weights._replace(bonus=x.double()), options, None)
    assert not takes(inputs, weights, options, x.double())


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


@pytest.mark.parametrize("keeps_carry", [True, False])
def test_one_token_of_the_operator(called: list[str], keeps_carry: bool) -> None:
    out = run_operator(keeps_carry=keeps_carry)
    assert called == ["state_head_step"]
    assert (out.carry is not None) == keeps_carry


@pytest.mark.parametrize("how", [{"size": 20}, {"tokens": 2}, {"read": lambda y: y}])
def test_what_is_no_step_of_the_kernel(
    called: list[str], others: list[str], how: dict[str, Any]
) -> None:
    run_operator(keeps_carry=False, **how)
    assert not called
    assert others == ["composed"]


@pytest.mark.parametrize(
    ("name", "instead"),
    [("", "torch"), ("chunked", "torch"), ("reference", "composed"), ("triton", None)],
)
def test_a_backend_asked_for_by_name(
    called_unasked: list[str],
    others: list[str],
    name: str,
    instead: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WUNENG_BACKEND", name)
    monkeypatch.setattr(backend, "JUDGED", frozenset())
    run_operator(keeps_carry=False)
    assert called_unasked == ["state_head_step"] * (instead is None)
    assert others == [instead] * (instead is not None)


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

    def keep(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    with using("triton"):
        out = torch.compile(step, fullgraph=True, backend=keep)(*given)
    assert out.state.shape == given[3].shape
    (graph,) = graphs
    called = [node for node in graph.graph.nodes if node.op == "call_function" and node.users]
    targets = [str(node.target) for node in called]
    steps = [target for target in targets if "getitem" not in target and "grad" not in target]
    assert steps == ["wuneng.state_head_step"]
    assert not others
