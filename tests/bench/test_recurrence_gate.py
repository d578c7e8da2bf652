"""Long sequences are compared in stretches: what they prove, and that nothing escapes them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from wuneng.bench import stretches
from wuneng.bench.memory import peak_bytes
from wuneng.bench.operator_peers import mamba_inputs, ssd_reference
from wuneng.bench.operators import OperatorShapes, wkv7_inputs
from wuneng.bench.record import Row
from wuneng.bench.recurrence_gate import Oracle, wkv7_oracle
from wuneng.bench.stretches import REACH, STRETCH, WHOLE, cut, stretches_of
from wuneng.ops import wkv7
from wuneng.ops.wkv7.reference import wkv7_reference

TOKENS = 6000
SHAPES = OperatorShapes(1, TOKENS, 1, 16, torch.float32, "fp32", torch.device("cpu"))
ROW = Row("ops", "forward", "chunked", TOKENS, 1, "fp32")
DECAY = wkv7_inputs(SHAPES, 0)[1]
#: A token of each stretch that is compared, and the last of all.
COMPARED = {"first tokens": 100, "between": 3000, "last tokens": TOKENS - 5}


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    """Keeps what the loop gave from one test to the next."""
    return wkv7_oracle(partial(wkv7_inputs, SHAPES, 0))


def test_a_loop_over_a_stretch_is_the_loop_over_everything() -> None:
    exact = [x.double() for x in wkv7_inputs(SHAPES, 0)]
    parts = stretches_of(TOKENS, DECAY)
    with torch.no_grad():
        whole = wkv7_reference(*exact)[0]  # type: ignore[call-arg]
        pieces = wkv7_reference(*(cut(x, parts) for x in exact))[0]  # type: ignore[call-arg]
    for part, piece in zip(parts, pieces.chunk(len(parts)), strict=True):
        expected = whole[:, part.start : part.end]
        error = (piece - expected)[:, part.outputs].abs().max() / whole.abs().max()
        assert error < 1e-15


def test_what_is_compared() -> None:
    assert [part.name for part in stretches_of(WHOLE, DECAY)] == [""]
    first, between, last = stretches_of(TOKENS, DECAY)
    assert (first.start, last.end) == (0, TOKENS)
    assert between.start % 2 == 1, "chunks begin at even numbers"
    assert {part.end - part.start for part in (first, between, last)} == {STRETCH}
    slow = torch.full_like(DECAY, -0.1)
    assert 0.1 * REACH < 40
    assert [(part.start, part.end) for part in stretches_of(TOKENS, slow)] == [(0, WHOLE)]


@pytest.mark.parametrize("backward", [False, True])
def test_right_operators_pass(oracle: Oracle, backward: bool) -> None:
    for operator in (partial(wkv7, backend="chunked"), wkv7):
        right = oracle.judge(ROW, operator, backward=backward)
        assert right.passed, right
        assert right.error < 1e-4
        assert "tokens 1 to 1,024, 2,746 to 3,513, 5,233 to 6,000" in right.reference


@pytest.mark.parametrize("stretch", COMPARED)
@pytest.mark.parametrize("backward", [False, True])
def test_a_wrong_token_is_found(oracle: Oracle, stretch: str, backward: bool) -> None:
    """Of 6,000 tokens one is computed from a wrong rate."""

    def wrong(r: Any, w: Any, k: Any, v: Any, a: Any, b: Tensor) -> Any:
        factor = torch.ones(TOKENS)
        factor[COMPARED[stretch]] = 0.5
        if backward:  # the same outputs, with other gradients
            b = b + (factor[:, None, None] - 1) * (b - b.detach())
        else:
            b = b * factor[:, None, None]
        return wkv7(r, w, k, v, a, b)

    found = oracle.judge(ROW, wrong, backward=backward)
    assert not found.passed
    assert found.detail.endswith(stretch)


@pytest.mark.parametrize("backward", [False, True])
def test_what_is_not_compared_has_to_be_finite(oracle: Oracle, backward: bool) -> None:
    spoiled = torch.zeros(1, TOKENS, 1, 16)
    spoiled[:, 1500] = float("inf")

    def wrong(r: Any, w: Any, k: Any, v: Tensor, a: Any, b: Any) -> Any:
        if not backward:
            y, state = wkv7(r, w, k, v, a, b)
            return y + spoiled, state
        v = 1 * v
        v.register_hook(lambda gradient: gradient + spoiled)
        return wkv7(r, w, k, v, a, b)

    found = oracle.judge(ROW, wrong, backward=backward)
    assert not found.passed
    assert "not finite" in found.detail


def test_the_loop_goes_over_no_more_than_it_has_to(oracle: Oracle) -> None:
    """Twenty times as long a sequence takes no longer a loop; a second arm takes none."""
    tokens: list[int] = []

    def counted(*inputs: Tensor) -> Any:
        tokens.append(inputs[0].shape[1])
        return wkv7_reference(*inputs)  # type: ignore[call-arg]

    own = Oracle(counted, oracle.draw, "counted", oracle.log_decay)
    for _ in range(2):
        for backward in (False, True):
            assert own.judge(ROW, wkv7, backward=backward).passed
    assert tokens == [STRETCH] * 3


def test_the_loop_holds_one_state() -> None:
    """All of them, at 32 heads and 32k tokens, are more than 30 GB."""
    shapes = OperatorShapes(1, 400, 2, 32, torch.float64, "fp64", torch.device("cpu"))
    inputs = wkv7_inputs(shapes, 0)

    @torch.no_grad()
    def loop() -> Any:
        return wkv7_reference(*inputs)  # type: ignore[call-arg]

    every_state = 400 * 2 * 32 * 32 * 8
    assert peak_bytes(loop, shapes.device) < every_state / 4


@pytest.mark.parametrize("backward", [False, True])
def test_of_what_is_not_forgotten_the_first_tokens_are_compared(
    backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stretches, "WHOLE", 300)
    shapes = OperatorShapes(1, 700, 2, 8, torch.float32, "fp32", torch.device("cpu"))
    names = ("x", "dt", "A", "B", "C", "D", "dt_bias")
    oracle = Oracle(
        ssd_reference, lambda: dict(zip(names, mamba_inputs(shapes, 0), strict=True)), "its loop"
    )
    row = Row("ops", "forward", "mamba2", 700, 1, "fp32")
    right = oracle.judge(row, ssd_reference, backward=backward)
    assert right.passed, right
    assert right.reference == "its loop, tokens 1 to 300"

    def wrong(x: Any, dt: Any, A: Any, *others: Any) -> Any:
        return ssd_reference(x, dt, 1.01 * A, *others)

    assert not oracle.judge(row, wrong, backward=backward).passed
