"""The recurrence from raw projections, in the interpreter against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.from_projections_checks import (
    Counted,
    ProjectionCase,
    assert_close,
    sides,
)
from tests.precision import losses
from wuneng.ops import wkv7_from_projections
from wuneng.ops.wkv7 import (
    triton_autograd,
    triton_from_projections,
    triton_launch,
    triton_passes,
)
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton

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
    cut = Counted(triton_autograd.states_at_starts)
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
