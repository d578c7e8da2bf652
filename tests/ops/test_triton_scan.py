"""WKV-7's Triton scans, forward and backward, in the interpreter against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.triton_checks import Case, assert_close, compare
from wuneng.ops.wkv7.triton_autograd import wkv7_triton

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=1),
        Case(tokens=16, size=32),
        Case(tokens=17, heads=2),
        Case(batch=2, tokens=31, heads=2),
        Case(tokens=50, size=64),
        Case(tokens=17, size=128),
        Case(tokens=0),
        Case(tokens=33, initial=False),
    ],
    ids=lambda case: f"T{case.tokens}-N{case.size}" + ("" if case.initial else "-from-zero"),
)
def test_outputs_and_gradients_for_any_length_and_head_size(case: Case) -> None:
    assert_close(case)


@pytest.mark.parametrize("chunk", [16, 32, 64])
@pytest.mark.parametrize("values", [16, 32])
def test_every_chunk_length_and_value_split(chunk: int, values: int) -> None:
    assert_close(Case(tokens=70, size=32, chunk=chunk, values=values))


@pytest.mark.parametrize("values", [0, 16])
def test_packed_sequences_do_not_meet(values: int) -> None:
    case = Case(tokens=55, heads=2, size=32, lengths=(1, 0, 16, 21, 17), values=values)
    assert_close(case)


@pytest.mark.parametrize("decay", ["none", "strongest", "both"])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_decays_at_both_ends_and_both_rates(decay: str, rate: float) -> None:
    assert_close(Case(tokens=49, decay=decay, rate=rate))


@pytest.mark.parametrize("repeats", [1, 2, 7, 16, 40, 200])
@pytest.mark.parametrize("chunk", [16, 32])
def test_runs_of_identical_tokens(repeats: int, chunk: int) -> None:
    """Text is full of them, and there the powers of A explode: the inverse must not form any."""
    assert_close(Case(tokens=repeats + 21, repeats=repeats, chunk=chunk))


def test_a_whole_sequence_of_one_token_at_rate_two() -> None:
    """b's gradient is a small difference here: what the recurrence itself loses in float32 varies
    threefold with the last bits of its inputs, which are therefore rounded once more."""
    case = Case(tokens=64, repeats=64, rate=2.0, chunk=64, rounding=torch.float32)
    assert_close(case)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_zero_tiny_and_huge_inputs(scale: float) -> None:
    assert_close(Case(tokens=37, scale=scale))


def test_all_inputs_zero() -> None:
    zero = torch.zeros(1, 20, 1, 16, requires_grad=True)
    y, state, _ = wkv7_triton(zero, zero, zero, zero, zero, zero)
    assert not y.any()
    assert not state.any()
    (gradient,) = torch.autograd.grad(y.sum() + state.sum(), zero)
    assert not gradient.any()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    tokens=st.integers(1, 40),
    heads=st.integers(1, 2),
    size=st.sampled_from([16, 32]),
    chunk=st.sampled_from([16, 32]),
    split=st.booleans(),
    repeats=st.integers(0, 20),
    rate=st.sampled_from([1.0, 2.0]),
    cuts=st.lists(st.integers(0, 40), max_size=3),
    seed=st.integers(0, 1000),
)
def test_drawn_shapes(
    tokens: int,
    heads: int,
    size: int,
    chunk: int,
    split: bool,
    repeats: int,
    rate: float,
    cuts: list[int],
    seed: int,
) -> None:
    bounds = sorted(min(cut, tokens) for cut in cuts)
    lengths = [end - begin for begin, end in zip([0, *bounds], [*bounds, tokens], strict=True)]
    assert_close(
        Case(
            tokens=tokens,
            heads=heads,
            size=size,
            chunk=chunk,
            values=16 if split else 0,
            repeats=min(repeats, tokens),
            rate=rate,
            lengths=tuple(lengths) if cuts else (),
            seed=seed,
        )
    )


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=45, heads=2, count=2),
        Case(batch=2, tokens=32, count=1, every=32),
        Case(tokens=50, lengths=(1, 0, 19, 30), count=2),
        Case(batch=2, tokens=37, count=3, seen=(32, 5)),
        Case(tokens=50, lengths=(1, 1, 18, 30), seen=(15, 16, 0, 33), count=2, every=32),
    ],
    ids=["fresh", "two-batch-rows", "packed", "continued", "packed-and-continued"],
)
def test_snapshots(case: Case) -> None:
    assert_close(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=50, size=32, rate=2.0),
        Case(tokens=45, lengths=(1, 27, 17), values=16, size=32),
        Case(tokens=61, repeats=40),
        Case(tokens=50, decay="both", heads=2),
        Case(tokens=40, count=2),
    ],
    ids=["plain", "packed-split", "repeated-tokens", "decays", "snapshots"],
)
def test_half_precision_operands(case: Case, dtype: torch.dtype) -> None:
    case.dtype = dtype
    case.generator.manual_seed(3)
    with faithful(rounds_tf32=True):
        assert_close(case)


def test_half_precision_at_inference_chunk_length() -> None:
    case = Case(tokens=70, size=32, dtype=torch.bfloat16, chunk=32)
    with faithful(rounds_tf32=True):
        assert_close(case)


def test_one_tf32_pass_stays_accurate_on_repeated_tokens() -> None:
    """The inverse's own precision for bfloat16 tensors, and all of it where torch allows tf32."""
    torch.set_float32_matmul_precision("high")
    try:
        with faithful(rounds_tf32=True):
            assert_close(Case(tokens=61, repeats=40, rounding="tf32"))
            assert max(compare(Case(tokens=61)).values()) > 1e-5  # tf32 was really emulated
    finally:
        torch.set_float32_matmul_precision("highest")
