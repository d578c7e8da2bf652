"""WKV-7 in segments that are worked on side by side: against float64, and against one pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.triton_interpreter import faithful  # isort: split

from tests.ops.triton_checks import INPUTS, Case, assert_close
from tests.precision import CHUNKED_FLOOR, assert_as_exact, losses, relative_error
from wuneng.ops.wkv7.reference import wkv7_reference
from wuneng.ops.wkv7.triton_autograd import wkv7_triton
from wuneng.ops.wkv7.triton_launch import segment_length
from wuneng.ops.wkv7.triton_tables import (
    boundary_rows,
    cut_sequences,
    full_table,
    max_segments,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=65, segments=3, heads=2),
        Case(tokens=33, segments=2, batch=2, initial=False),
        Case(tokens=70, segments=2, size=32, values=16, chunk=32),
        Case(tokens=40, segments=3, size=64),
        pytest.param(Case(tokens=33, segments=2, size=128), marks=pytest.mark.slow),
        Case(tokens=20, segments=100),
        Case(tokens=1, segments=4),
        Case(tokens=0, segments=4),
    ],
    ids=["tail-of-1", "batch-from-zero", "split", "N64", "N128", "shorter", "one", "none"],
)
def test_outputs_and_gradients(case: Case) -> None:
    assert_close(case)


@pytest.mark.parametrize(
    ("segments", "decay"),
    [
        (4, "both"),
        (12, "none"),
        pytest.param(64, "none", marks=pytest.mark.slow),
        pytest.param(64, "both", marks=pytest.mark.slow),
    ],
)
def test_errors_do_not_grow_with_segments(segments: int, decay: str) -> None:
    """Without decay nothing is forgotten: an error of the first segment reaches the last."""
    assert_close(Case(tokens=16 * segments, segments=segments, decay=decay))


@pytest.mark.parametrize(("repeats", "rate"), [(60, 1.0), (60, 2.0)])
def test_runs_of_identical_tokens(repeats: int, rate: float) -> None:
    """One that crosses cuts: there a segment's transition is nearly a projection."""
    assert_close(Case(tokens=80, repeats=repeats, rate=rate, segments=5))


@pytest.mark.slow
@pytest.mark.parametrize("repeats", [1, 16, 40, 400])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_long_runs_of_identical_tokens(repeats: int, rate: float) -> None:
    assert_close(Case(tokens=repeats + 100, repeats=repeats, rate=rate, segments=16))


def test_rate_two_and_strongest_decay() -> None:
    assert_close(Case(tokens=49, segments=3, decay="strongest", rate=2.0))


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_zero_and_huge_inputs(scale: float) -> None:
    assert_close(Case(tokens=33, scale=scale, segments=2))


@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=70, lengths=(1, 0, 20, 49), segments=4),
        Case(tokens=33, lengths=(0, 33, 0), segments=2, heads=2),
        Case(tokens=64, count=1, every=32, segments=2),
        pytest.param(
            Case(tokens=33, batch=2, count=3, seen=(32, 5), segments=2), marks=pytest.mark.slow
        ),
        Case(tokens=50, lengths=(1, 1, 18, 30), seen=(15, 16, 0, 33), count=2, segments=3),
    ],
    ids=["packed", "empties", "on-a-cut", "continued", "packed-continued"],
)
def test_packed_continued_and_snapshots(case: Case) -> None:
    assert_close(case)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "case",
    [
        Case(tokens=50, size=32, segments=3, count=2),
        Case(tokens=64, repeats=40, segments=4),
    ],
    ids=["snapshots", "repeated-tokens"],
)
def test_half_precision_operands(case: Case, dtype: torch.dtype) -> None:
    case.dtype = dtype
    case.generator.manual_seed(3)
    with faithful(rounds_tf32=True):
        assert_close(case)


def operator_arguments(case: Case, keeps_states: bool, segments: int) -> tuple[object, ...]:
    leaves = case.tested_leaves(case.leaves())
    bounds = torch.tensor([0, *case.lengths]).cumsum(0) if case.lengths else None
    position = torch.tensor(case.seen) if case.seen else None
    inputs = [leaves[name] for name in INPUTS]
    return (*inputs, leaves["initial_state"], bounds, position, 16, 0, keeps_states, segments)


@pytest.mark.parametrize(("lengths", "seen"), [((), ()), ((1, 40, 0, 29), ()), ((30, 40), (17, 3))])
def test_stored_states_lie_as_one_pass_puts_them(
    lengths: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    """Each way may lose what the loop's roundings justify, so both are at most twice that apart."""
    stored = []
    for segments in (1, 4):
        case = Case(tokens=70, lengths=lengths, seen=seen)
        case.count = 1 if seen else 0
        with torch.no_grad():
            arguments = operator_arguments(case, True, segments)
            stored.append(torch.ops.wuneng.wkv7_triton_forward(*arguments))
    case = Case(tokens=70, lengths=lengths)
    exact = case.leaves()
    rough, wide = (case.run(x, wkv7_reference) for x in (case.tested_leaves(exact), exact))
    allowed = max(loss.allowed for loss in losses(rough, rough, wide, CHUNKED_FLOOR))
    for segmented, whole in zip(stored[1], stored[0], strict=True):
        assert relative_error(segmented, whole.double()) <= 2 * allowed


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_operator_is_registered_properly(packed: bool) -> None:
    case = Case(tokens=33, lengths=(7, 26) if packed else ())
    arguments = operator_arguments(case, True, 2)
    torch.library.opcheck(torch.ops.wuneng.wkv7_triton_forward.default, arguments)


def outputs_and_gradients(case: Case, compiled: bool = False) -> list[Tensor]:
    case.generator.manual_seed(0)
    leaves = case.tested_leaves(case.leaves())

    def total(leaves: dict[str, Tensor]) -> Tensor:
        outputs = case.run(leaves, wkv7_triton, segments=case.segments)
        return sum((x.square().sum() for x in outputs), torch.zeros(()))

    run = torch.compile(total, fullgraph=True, backend="aot_eager") if compiled else total
    loss = run(leaves)
    return [loss, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("lengths", [(), (7, 26)])
def test_the_same_bits_again_and_when_compiled(lengths: tuple[int, ...]) -> None:
    case = Case(tokens=33, lengths=lengths, count=1, segments=2)
    first = outputs_and_gradients(case)
    for other in (outputs_and_gradients(case), outputs_and_gradients(case, compiled=True)):
        assert all(torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_gradient_of_the_final_state_alone() -> None:
    """It crosses every segment, and no y helps it along."""
    case = Case(tokens=60, segments=4)
    exact = {name: x.requires_grad_() for name, x in case.leaves().items()}
    leaves = case.tested_leaves(exact)

    def gradients(operator: Callable[..., object], leaves: dict[str, Tensor], **how: int) -> object:
        state = case.run(leaves, operator, **how)[1]
        wanted = {name: x for name, x in leaves.items() if name != "r"}
        found = torch.autograd.grad(state, list(wanted.values()), torch.ones_like(state))
        return dict(zip(wanted, found, strict=True))

    loops = gradients(wkv7_reference, leaves), gradients(wkv7_reference, exact)
    for segments in (1, 4):
        found = gradients(wkv7_triton, leaves, segments=segments)
        assert_as_exact(found, *loops, floor=CHUNKED_FLOOR)


def test_when_segments_are_chosen() -> None:
    def chosen(programs: int, heads: int, tokens: int, processors: int = 132) -> int:
        return segment_length(0, tokens, 16, programs, heads, processors)

    assert chosen(programs=66, heads=16, tokens=4096) == 0
    assert chosen(programs=16, heads=4, tokens=1000) == 0
    assert chosen(programs=4, heads=4, tokens=4096, processors=1) == 0  # the interpreter's CPU
    assert chosen(programs=48, heads=12, tokens=4096) == 192  # 22 segments: 264 programs
    assert chosen(programs=16, heads=4, tokens=4096) == 192  # 22: the scan over them binds
    assert chosen(programs=4, heads=1, tokens=65536) == 736  # 90
    assert segment_length(3, 100, 16, 1000, 1000, 132) == 48
    assert segment_length(1, 10**6, 16, 1, 1, 132) == 0
    assert segment_length(5, 16, 16, 1, 1, 132) == 0
    with pytest.raises(ValueError, match="segments must not be negative, got -1"):
        segment_length(-1, 100, 16, 1, 1, 132)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=6),
    continued=st.booleans(),
    chunks=st.integers(1, 5),
    seed=st.integers(0, 100),
)
def test_segments_cover_every_token_once_and_fit_their_bound(
    lengths: list[int], continued: bool, chunks: int, seed: int
) -> None:
    chunk, length, tokens = 16, 16 * chunks, sum(lengths)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    seen = torch.randint(0, 100, (len(lengths),), generator=torch.manual_seed(seed))
    table = full_table(1, tokens, bounds, seen if continued else None, chunk)
    rows = boundary_rows(tokens, chunk, len(lengths), True, continued)
    bound = max_segments(tokens, len(lengths), length, chunk, continued)
    cut = cut_sequences(table, length, bound, chunk, rows)
    used = int(cut.ranges[-1, 1])
    assert used <= bound
    pieces = cut.table[:used]
    assert pieces[0, 0] == 0
    assert pieces[-1, 1] == tokens
    assert torch.equal(pieces[1:, 0], pieces[:-1, 1])
    # Rows of states: one per chunk, and the last sequence's end before the row that is spare.
    count = (pieces[:, 1] - pieces[:, 0] + pieces[:, 2] + chunk - 1) // chunk
    inner = ~cut.is_last[:used]
    assert torch.equal((pieces[:, 3] + count)[inner], pieces[1:, 3][inner[:-1]])
    assert int(pieces[-1, 3] + count[-1]) < rows - 1
    assert torch.equal(pieces[cut.is_first[:used]][:, 2:], table[:, 2:])
    left_over = cut.table[used:]
    assert not left_over[:, :3].any()
    assert (left_over[:, 3] == rows - 1).all()
    assert cut.is_first[used:].all()
    assert cut.is_last[used:].all()
