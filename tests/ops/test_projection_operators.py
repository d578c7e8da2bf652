"""The recurrence from raw projections as torch operators: registration, compilation, interface."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.from_projections_checks import (
    ARGUMENTS,
    Counted,
    ProjectionCase,
    written_out,
)
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7_from_projections
from wuneng.ops.wkv7 import (
    triton_autograd,
    triton_from_projections,
    triton_launch,
)
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton
from wuneng.ops.wkv7.triton_step import wkv7_triton_step

KEYS = pytest.mark.parametrize("shared", [True, False], ids=["shared-key", "own-removal-key"])


pytestmark = pytest.mark.usefixtures("poisoned_memory")


def arguments(case: ProjectionCase) -> list[Tensor | None]:
    leaves = case.tested_leaves(case.leaves())
    return [leaves.get(name) for name in ARGUMENTS]


@KEYS
def test_operators_are_registered_properly(shared: bool) -> None:
    given = arguments(ProjectionCase(tokens=20, shared=shared))
    bounds = torch.tensor([0, 7, 20]) if shared else None
    torch.library.opcheck(
        torch.ops.wuneng.wkv7_from_projections_triton_forward.default,
        (*given, None, bounds, 2.0, 16, 0, True),
    )


@pytest.mark.parametrize(
    "case", [ProjectionCase(tokens=20), ProjectionCase(tokens=20, lengths=(7, 13))]
)
def test_compiles_without_a_graph_break(case: ProjectionCase) -> None:
    leaves = case.tested_leaves(case.leaves())
    case.options["backend"] = "triton"

    def loss(leaves: dict[str, Tensor]) -> Tensor:
        return sum(
            (x.square().sum() for x in case.run(leaves, wkv7_from_projections)), torch.zeros(())
        )

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(f(leaves), list(leaves.values())) for f in (loss, compiled)]
    for eager, traced in zip(*gradients, strict=True):
        assert torch.equal(eager, traced)


@pytest.mark.parametrize("packed", [False, True])
def test_one_graph_serves_lengths_that_change(packed: bool) -> None:
    """As in training on rows of several lengths: sizes are symbols then, not numbers."""

    def loss(bounds: Tensor | None, *given: Tensor | None) -> Tensor:
        y, key, state = wkv7_from_projections_triton(*given, a_max=2.0, cu_seqlens=bounds)
        return y.square().sum() + key.sum() + state.square().sum()

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=counter)
    for tokens in (20, 37):
        given = arguments(ProjectionCase(batch=1 if packed else 3, tokens=tokens))
        bounds = torch.tensor([0, 7, tokens]) if packed else None
        wanted = [x for x in given if x is not None]
        eager, traced = (torch.autograd.grad(f(bounds, *given), wanted) for f in (loss, compiled))
        assert all(torch.equal(a, b) for a, b in zip(eager, traced, strict=True))
    assert counter.frame_count == 1


def test_the_same_inputs_give_the_same_bits() -> None:
    case = ProjectionCase(tokens=20, size=32, options={"values": 16})
    leaves = case.tested_leaves(case.leaves())
    runs = []
    for _ in range(2):
        outputs = case.run(leaves, wkv7_from_projections_triton)
        total = sum((x.square().sum() for x in outputs), torch.zeros(()))
        runs.append([*outputs, *torch.autograd.grad(total, list(leaves.values()))])
    for first, second in zip(*runs, strict=True):
        assert torch.equal(first, second)


def test_gradient_of_each_output_alone() -> None:
    case = ProjectionCase(tokens=20, shared=False)
    leaves = case.tested_leaves(case.leaves())
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    calls = [(leaves, wkv7_from_projections_triton), (leaves, written_out), (exact, written_out)]
    all_outputs = [case.run(x, operator) for x, operator in calls]
    options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
    for index in range(3):
        gradients = [
            torch.autograd.grad(outputs[index], list(x.values()), outputs[index], **options)
            for outputs, (x, _) in zip(all_outputs, calls, strict=True)
        ]
        assert_as_exact(*gradients, floor=CHUNKED_FLOOR)


def test_strided_projections() -> None:
    given = [
        None if x is None else x.detach() for x in arguments(ProjectionCase(tokens=20, heads=2))
    ]
    expected = wkv7_from_projections_triton(*given, a_max=1.0)
    turned = [
        x.transpose(1, 2).contiguous().transpose(1, 2) if x is not None and x.dim() == 4 else x
        for x in given
    ]
    for x, y in zip(wkv7_from_projections_triton(*turned, a_max=1.0), expected, strict=True):
        assert torch.equal(x, y)


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(wkv7_from_projections_triton)
    monkeypatch.setattr(triton_from_projections, "wkv7_from_projections_triton", counted)
    return counted


def test_the_interface_reaches_the_kernels(fused: Counted) -> None:
    given = arguments(ProjectionCase(tokens=20))
    found = wkv7_from_projections(*given, a_max=2.0, backend="triton")
    assert fused.calls == 1
    for x, y in zip(found[:3], wkv7_from_projections_triton(*given, a_max=2.0), strict=True):
        assert torch.equal(x, y)


def test_one_token_without_gradients_takes_the_step(
    fused: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Counted(wkv7_triton_step)
    monkeypatch.setattr(triton_autograd, "wkv7_triton_step", step)
    given = arguments(ProjectionCase(batch=2, tokens=1))
    with torch.no_grad():
        found = wkv7_from_projections(*given, a_max=1.0, backend="triton")
    assert (fused.calls, step.calls) == (0, 1)
    wide = [None if x is None else x.double() for x in given]
    reference, exact = (
        wkv7_from_projections(*x, a_max=1.0, backend="reference") for x in (given, wide)
    )
    assert_as_exact(found.y, reference.y, exact.y)


def test_what_the_fused_kernels_leave_to_the_parts(
    fused: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(ProjectionCase(tokens=20))
    weights = torch.softmax(torch.randn(1, 20, 1, 3), -1)
    found = wkv7_from_projections(
        *given, a_max=1.0, snapshots=Snapshots(16, weights), backend="triton"
    )
    assert found.ring is not None
    odd = [None if x is None else x.detach()[..., :15] for x in given]
    with pytest.raises(ValueError, match=r"head sizes 16, 32, 64, 128, got 15.*chunked"):
        wkv7_from_projections(*odd, a_max=1.0, backend="triton")
    with pytest.raises(ValueError, match=r"float32, bfloat16 or float16.*float64"):
        wkv7_from_projections(
            *(None if x is None else x.double() for x in given), a_max=1.0, backend="triton"
        )
    monkeypatch.setattr(triton_launch, "INTERPRETING", False)
    with pytest.raises(ValueError, match="needs CUDA tensors"):
        wkv7_from_projections(*given, a_max=1.0, backend="triton")
    assert fused.calls == 0


def test_states_are_kept_only_for_a_backward_pass() -> None:
    given = arguments(ProjectionCase(tokens=20))
    operator = torch.ops.wuneng.wkv7_from_projections_triton_forward
    with torch.no_grad():
        *_, kept = operator(*given, None, None, 1.0, 16, 0, False)
    assert kept.shape[0] == 0
    with pytest.raises(RuntimeError, match="keeps_states"):
        operator(*given, None, None, 1.0, 16, 0, False)


def test_a_missing_triton_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    interface = importlib.import_module("wuneng.ops.wkv7.interface")

    def missing(_backend: str) -> None:
        raise ModuleNotFoundError("backend 'triton' needs the package triton", name="triton")

    monkeypatch.setattr(interface, "load", missing)
    with pytest.raises(ModuleNotFoundError, match="needs the package triton"):
        wkv7_from_projections(*arguments(ProjectionCase(tokens=4)), a_max=1.0, backend="triton")
