"""The recurrence from raw projections, in the interpreter against float64, and its operators."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.from_projections_checks import (
    ARGUMENTS,
    ProjectionCase,
    assert_close,
    sides,
    written_out,
)
from tests.precision import CHUNKED_FLOOR, assert_as_exact, losses
from wuneng.ops import Snapshots, wkv7_from_projections
from wuneng.ops.wkv7 import (
    triton_autograd,
    triton_from_projections,
    triton_launch,
    triton_passes,
)
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton
from wuneng.ops.wkv7.triton_step import wkv7_triton_step

KEYS = pytest.mark.parametrize("shared", [True, False], ids=["shared-key", "own-removal-key"])


pytestmark = pytest.mark.usefixtures("poisoned_memory")


@KEYS
@pytest.mark.parametrize(
    "case",
    [
        ProjectionCase(tokens=1),
        ProjectionCase(tokens=0),
        ProjectionCase(batch=0, tokens=5),
        ProjectionCase(batch=2, tokens=17, heads=2, size=32, a_max=2.0),
        ProjectionCase(tokens=50, size=64, initial=False),
        ProjectionCase(tokens=17, size=128),
        ProjectionCase(tokens=55, heads=2, lengths=(1, 0, 16, 21, 17)),
        ProjectionCase(tokens=37, size=32, options={"values": 16}),
        ProjectionCase(tokens=37, size=32, lengths=(20, 17), options={"values": 16, "chunk": 32}),
        ProjectionCase(zero_keys=True),
    ],
    ids=["one", "none", "no-rows", "batch", "N64", "N128", "packed", "split", "packed-split",
         "zero-keys"],
)  # fmt: skip
def test_outputs_and_gradients(case: ProjectionCase, shared: bool) -> None:
    case.shared = shared
    case.generator.manual_seed(0)
    assert_close(case, wkv7_from_projections_triton)


@pytest.mark.parametrize("decay", ["none", "strongest", "both"])
@pytest.mark.parametrize("a_max", [1.0, 2.0])
def test_decays_at_both_ends_and_both_rates(decay: str, a_max: float) -> None:
    assert_close(ProjectionCase(decay=decay, a_max=a_max), wkv7_from_projections_triton)


@KEYS
@pytest.mark.parametrize("repeats", [7, 40])
def test_runs_of_identical_tokens(repeats: int, shared: bool) -> None:
    case = ProjectionCase(tokens=repeats + 21, repeats=repeats, shared=shared)
    assert_close(case, wkv7_from_projections_triton)


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e-6, 1e4, 1e12])
def test_zero_tiny_and_huge_inputs(scale: float) -> None:
    """At 1e-15 keys are below the epsilon of the norm, at 0 they have no direction at all."""
    assert_close(ProjectionCase(scale=scale), wkv7_from_projections_triton)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        ProjectionCase(tokens=37, size=32, a_max=2.0),
        ProjectionCase(tokens=37, logit_dtype=torch.float32, shared=False),
        ProjectionCase(tokens=37, size=32, lengths=(1, 27, 9), options={"values": 16}),
    ],
    ids=["plain", "float32-decay-logit", "packed-split"],
)
def test_half_precision_operands(case: ProjectionCase, dtype: torch.dtype) -> None:
    case.dtype = dtype
    case.generator.manual_seed(3)
    with faithful(rounds_tf32=True):
        assert_close(case, wkv7_from_projections_triton)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_on_repeated_tokens(dtype: torch.dtype) -> None:
    """A GPU was off by 5 % here, in the keys' gradient, while tf32 served the inverse."""
    case = ProjectionCase(tokens=61, size=64, repeats=40, dtype=dtype)
    with faithful(rounds_tf32=True):
        assert_close(case, wkv7_from_projections_triton)


def worst(case: ProjectionCase, operator: Callable[..., object]) -> tuple[float, float]:
    """Of all tensors: the largest loss, and the largest that is allowed."""
    found = losses(*sides(case, operator))
    return max(loss.found for loss in found), max(loss.allowed for loss in found)


def test_half_precision_on_repeated_tokens_is_no_worse_than_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gradients are small differences of large terms there, whatever rounds them."""
    case = ProjectionCase(tokens=61, repeats=40, dtype=torch.bfloat16)
    with faithful(rounds_tf32=True):
        fused = worst(case, wkv7_from_projections_triton)
        monkeypatch.setattr(triton_from_projections, "fits", lambda *_: False)
        case.generator.manual_seed(0)
        case.options["backend"] = "triton"
        parts = worst(case, wkv7_from_projections)
    assert fused[0] < max(2 * parts[0], fused[1])


@pytest.mark.parametrize("lengths", [(), (9, 40, 21)], ids=["one", "packed"])
def test_few_heads_in_segments(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where heads are few the scan cuts sequences, whatever made its inputs."""
    cut = _Counted(triton_autograd.states_at_starts)
    monkeypatch.setattr(triton_autograd, "states_at_starts", cut)
    monkeypatch.setattr(triton_passes, "processors", lambda _: 132)
    monkeypatch.setattr(triton_launch, "SEGMENTED_CHUNKS", 4)
    case = ProjectionCase(tokens=70, lengths=lengths)
    assert_close(case, wkv7_from_projections_triton)
    assert cut.calls == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_drawn_shapes(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)

    def below(limit: int) -> int:
        return int(torch.randint(limit, (), generator=draw))

    tokens = 1 + below(70)
    cut = below(tokens + 1)
    size = (16, 32, 64)[below(3)]
    case = ProjectionCase(
        batch=1,
        tokens=tokens,
        heads=1 + below(3),
        size=size,
        shared=bool(below(2)),
        a_max=1.0 + below(2),
        repeats=below(tokens),
        lengths=(cut, tokens - cut) if below(2) else (),
        options={"chunk": (16, 32)[below(2)], "values": (16, min(size, 32))[below(2)]},
        seed=seed,
    )
    assert_close(case, wkv7_from_projections_triton)


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


class _Counted:
    """A function that counts its calls."""

    def __init__(self, function: object) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls += 1
        return self.function(*arguments, **options)  # type: ignore[operator]


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> _Counted:
    counted = _Counted(wkv7_from_projections_triton)
    monkeypatch.setattr(triton_from_projections, "wkv7_from_projections_triton", counted)
    return counted


def test_the_interface_reaches_the_kernels(fused: _Counted) -> None:
    given = arguments(ProjectionCase(tokens=20))
    found = wkv7_from_projections(*given, a_max=2.0, backend="triton")
    assert fused.calls == 1
    for x, y in zip(found[:3], wkv7_from_projections_triton(*given, a_max=2.0), strict=True):
        assert torch.equal(x, y)


def test_one_token_without_gradients_takes_the_step(
    fused: _Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = _Counted(wkv7_triton_step)
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
    fused: _Counted, monkeypatch: pytest.MonkeyPatch
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
