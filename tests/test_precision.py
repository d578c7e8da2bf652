"""The bound of the numeric tests: planted errors fail it, another processor's roundings do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.ops.wkv7_cases import INPUT_NAMES, Case
from tests.precision import (
    CHUNKED_FLOOR,
    FLOOR,
    assert_as_exact,
    losses,
    relative_error,
    rounded_again,
    worst,
)

CASE = Case(batch=2, tokens=50, size=16, initial_state=True)
EXACT = CASE.values_and_gradients("reference", torch.float64)
REFERENCE = CASE.values_and_gradients("reference", torch.float32)


def sign_of_one_token(x: Tensor) -> None:
    x[1, 17] *= -1


def one_percent_of_one_channel(x: Tensor) -> None:
    x[..., 5] *= 1.01


def dropped_last_token(x: Tensor) -> None:
    x[:, -1] = 0


def two_tokens_exchanged(x: Tensor) -> None:
    x[:, [3, 4]] = x[:, [4, 3]]


def one_number_off_by_a_ten_thousandth(x: Tensor) -> None:
    x.view(-1)[x.abs().argmax()] *= 1 + 1e-4


def not_a_number(x: Tensor) -> None:
    x[0, 0, 0, 0] = torch.nan


PLANTED = [
    sign_of_one_token,
    one_percent_of_one_channel,
    dropped_last_token,
    two_tokens_exchanged,
    one_number_off_by_a_ten_thousandth,
    not_a_number,
]


@pytest.mark.parametrize("name", ["y", *(f"d_{name}" for name in INPUT_NAMES)])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_planted_errors_fail(plant: Callable[[Tensor], None], name: str) -> None:
    found = {name: x.clone() for name, x in REFERENCE.items()}
    assert_as_exact(found, REFERENCE, EXACT)
    plant(found[name])
    with pytest.raises(AssertionError, match=f"\n{name}: off by .*, the plain formula by .*allow"):
        assert_as_exact(found, REFERENCE, EXACT)


@pytest.mark.parametrize("plant", PLANTED[:4], ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_planted_errors_fail_in_half_precision(
    plant: Callable[[Tensor], None], dtype: torch.dtype
) -> None:
    """Except 1 % of a channel, which bfloat16 itself may lose."""
    exact = EXACT["y"].to(dtype).double()
    reference = rounded_again(exact, dtype).to(dtype)
    found = exact.to(dtype)
    assert_as_exact(found, reference, exact)
    plant(found)
    passes = plant is one_percent_of_one_channel and dtype == torch.bfloat16
    assert losses(found, reference, exact)[0].passed == passes


@pytest.mark.parametrize("seed", range(8))
def test_another_processors_roundings_pass(seed: int) -> None:
    """Sums in another order: the chunked form, and channels permuted on the way in and back."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(CASE.size, generator=generator)
    back = order.argsort()
    leaves = {name: x.float() for name, x in CASE.leaves.items()}
    permuted = {n: x[..., order] for n, x in leaves.items()}
    permuted["initial_state"] = permuted["initial_state"][..., order, :]
    for backend in ("reference", "chunked"):
        y, state = CASE.run(permuted, backend)
        found = {"y": y[..., back], "state": state[..., back, :][..., back]}
        named = ("y", "state")
        assert_as_exact(
            *(found, *({n: side[n] for n in named} for side in (REFERENCE, EXACT))),
            floor=FLOOR if backend == "reference" else CHUNKED_FLOOR,
        )


def test_a_badly_conditioned_case_may_lose_more() -> None:
    """On a run of one token float32 itself loses more: a fixed bound fits one of the two."""
    lost = []
    for identical in (0, 200):
        case = Case(tokens=250, heads=1, size=32, identical=identical, a_max=2.0)
        exact, plain, chunked = (
            case.values_and_gradients(backend, dtype)
            for backend, dtype in (
                ("reference", torch.float64),
                ("reference", torch.float32),
                ("chunked", torch.float32),
            )
        )
        assert_as_exact(chunked, plain, exact, floor=CHUNKED_FLOOR)
        lost.append(max(loss.reference for loss in losses(plain, plain, exact)))
    assert lost[1] > 2 * lost[0]


def test_what_is_always_allowed() -> None:
    exact = torch.tensor([1.0, -4.0], dtype=torch.float64)
    unit = torch.finfo(torch.float32).eps
    for units, passes in ((0, True), (FLOOR - 1, True), (FLOOR + 1, False)):
        found = exact.float() + torch.tensor([4 * units * unit, 0])
        assert losses(found, exact.float(), exact)[0].passed == passes
    half = exact.bfloat16()
    assert losses(half, half, exact + 0.003)[0].passed
    assert not losses(half * 1.01, half, exact)[0].passed


def test_a_small_difference_of_large_terms_has_their_scale() -> None:
    exact = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    sides = [{"d": x} for x in (exact.float() + 1e-7, exact, exact)]
    assert not losses(*sides)[0].passed
    assert losses(*sides, scales={"d": 1.0})[0].passed
    assert not losses(*sides, scales={"d": 0.1})[0].passed


def test_sides_that_do_not_belong_together() -> None:
    x = torch.ones(2, 3, dtype=torch.float64)
    with pytest.raises(AssertionError, match="other tensors"):
        assert_as_exact({"y": x}, {"y": x}, {"z": x})
    with pytest.raises(AssertionError, match=r"shape \[2, 2\], not \[2, 3\]"):
        assert_as_exact(x[:, :2], x, x)
    with pytest.raises(AssertionError, match=r"an oracle in torch\.float32"):
        assert_as_exact(x, x, x.float())
    with pytest.raises(AssertionError, match="not finite"):
        assert_as_exact(x, x, x * torch.inf)


def test_the_worst_of_several_references() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    near, far = exact.float() + 1e-6, exact.float() + 1e-4
    assert torch.equal(worst([near, far], exact), far)
    chosen = worst([{"a": near, "b": far}, {"a": far, "b": near}], {"a": exact, "b": exact})
    assert all(torch.equal(x, far) for x in chosen.values())
    assert torch.equal(worst([[near], [far]], [exact])[0], far)


def test_zero_and_empty() -> None:
    zero = torch.zeros(3, dtype=torch.float64)
    assert_as_exact(zero.float(), zero, zero)
    assert not losses(zero + 1e-5, zero, zero)[0].passed
    assert relative_error(zero[:0], zero[:0]) == 0


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2.0**-7), ("tf32", 2.0**-10)])
def test_rounded_again_is_off_by_half_a_unit(dtype: torch.dtype | str, unit: float) -> None:
    x = torch.randn(10_000, dtype=torch.float64)
    off = ((rounded_again(x, dtype) - x) / x).abs().max()
    assert 0.45 * unit < off <= 0.5 * unit
