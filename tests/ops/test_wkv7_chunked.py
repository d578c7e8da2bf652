"""The chunked form against the float64 recurrence: outputs and every gradient."""

from __future__ import annotations

import importlib
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.wkv7_cases import INPUT_NAMES, Case, assert_matches, boundaries
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7
from wuneng.ops.wkv7.chunk_algebra import invert, keep_visible_

#: Units in the last place, 1e-5: in heads of two channels sixteen removal keys are nearly parallel,
#: and a chunk's triangular system is as badly conditioned as on a run of one token.
PARALLEL_FLOOR = 84.0


@pytest.mark.parametrize(
    "tokens",
    [*range(1, 10), 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 97, 127, 128, 129, 191, 255, 257, 300],
)
def test_any_length(tokens: int) -> None:
    assert_matches(Case(batch=2, tokens=tokens, heads=1, initial_state=True))


@pytest.mark.parametrize("size", [1, 8, 24, 32, 64, 128])
@pytest.mark.parametrize("tokens", [1, 45, 96])
def test_head_sizes(size: int, tokens: int) -> None:
    assert_matches(Case(tokens=tokens, size=size, heads=2, initial_state=True))


@pytest.mark.parametrize("decay", ["slow", "fast", "mixed"])
@pytest.mark.parametrize("a_max", [1.0, 2.0])
@pytest.mark.parametrize("size", [32, 64])
def test_ends_of_the_decay_range(decay: str, a_max: float, size: int) -> None:
    case = Case(tokens=133, heads=1, size=size, decay=decay, a_max=a_max, initial_state=True)
    assert_matches(case)


def test_steeper_decay_than_rwkv7_has() -> None:
    """Down to -2.5 a token, as documented."""
    case = Case(tokens=70, size=16, decay="fast", initial_state=True)
    case.leaves["w"].fill_(-2.5)
    assert_matches(case)


@pytest.mark.parametrize("run", [1, 2, 5, 16, 31, 32, 33, 40, 64, 100, 200])
@pytest.mark.parametrize("a_max", [1.0, 2.0])
def test_runs_of_identical_tokens(run: int, a_max: float) -> None:
    case = Case(tokens=run + 41, heads=1, size=32, identical=run, a_max=a_max)
    assert_matches(case)


@pytest.mark.parametrize("chunk", [8, 16, 32, 64])
def test_inverse_of_identical_tokens(chunk: int) -> None:
    """kappa equal at every token: powers of A reach 1e17, the inverse stays below 1."""
    strict = torch.full((3, chunk, chunk), -0.9, dtype=torch.float64).tril(-1)
    expected = torch.linalg.inv(torch.eye(chunk, dtype=torch.float64) - strict)
    unit = torch.eye(chunk)
    reference = torch.linalg.solve_triangular(unit - strict.float(), unit, upper=False)
    assert_as_exact(invert(strict.float()), reference, expected)
    assert (invert(strict) - expected).abs().max() < 1e-14


@pytest.mark.parametrize("scale", [0.0, 1e-15, 1e6, 1e12])
def test_zero_and_extreme_inputs(scale: float) -> None:
    assert_matches(Case(tokens=70, scale=scale, initial_state=scale == 0))


def test_overflow_of_what_a_token_may_not_see() -> None:
    """Scores above the diagonal overflow here; what is visible does not."""
    assert_matches(Case(tokens=70, size=32, scale=1e15, decay="fast"))


def test_mask_silences_infinities() -> None:
    scores = torch.full((2, 8, 8), torch.inf)
    scores[1] = torch.nan
    kept = keep_visible_(scores)
    assert (kept[:, 0] == 0).all()
    assert not kept[0, 4, 0].isfinite()
    assert int((kept == 0).sum()) == 2 * (2 * 10 + 2 * 6)


def test_zero_tokens_pass_the_state_through() -> None:
    case = Case(tokens=0, batch=2, initial_state=True)
    assert_matches(case)
    leaves = {name: x.float() for name, x in case.leaves.items()}
    y, state = case.run(leaves, "chunked")
    assert y.shape == (2, 0, 2, 8)
    assert torch.equal(state, leaves["initial_state"])


@pytest.mark.parametrize(
    "lengths",
    [
        (1,),
        (1, 1, 1, 1),
        (37, 1, 0, 64, 32, 33, 5),
        (0, 0, 3, 0),
        (16, 16, 16),
        (200, 3),
        tuple(range(1, 25)),
    ],
    ids=lambda lengths: f"{len(lengths)}-documents-{sum(lengths)}",
)
@pytest.mark.parametrize("initial_state", [False, True])
def test_packed_documents(lengths: tuple[int, ...], initial_state: bool) -> None:
    assert_matches(Case(lengths=lengths, initial_state=initial_state))


def test_packed_documents_equal_separate_calls() -> None:
    lengths = (37, 1, 90, 12)
    case = Case(lengths=lengths, initial_state=True)
    leaves = {name: x.float() for name, x in case.leaves.items()}
    (rough_y, rough_states), (exact_y, exact_states) = (
        case.run(x, "reference") for x in (leaves, case.leaves)
    )
    y, states = case.run(leaves, "chunked")
    for index, (start, end) in enumerate(boundaries(lengths).unfold(0, 2, 1).tolist()):
        own = [leaves[name][:, start:end] for name in INPUT_NAMES]
        initial = leaves["initial_state"][index : index + 1]
        alone, state = wkv7(*own, initial_state=initial, backend="chunked")
        span, own_state = slice(start, end), slice(index, index + 1)
        for found in ((alone, state), (y[:, span], states[own_state])):
            assert_as_exact(
                found,
                (rough_y[:, span], rough_states[own_state]),
                (exact_y[:, span], exact_states[own_state]),
                floor=CHUNKED_FLOOR,
            )


def test_a_broken_document_leaves_the_others_alone() -> None:
    """NaN in one document must reach neither another's outputs nor another's gradients."""
    case = Case(lengths=(20, 40, 20), initial_state=True)
    case.leaves["v"][:, 20:60] = torch.nan
    found = case.values_and_gradients("chunked", torch.float32)
    others = torch.cat([torch.arange(20), torch.arange(60, 80)])
    for name in ("y", *(f"d_{name}" for name in INPUT_NAMES)):
        assert found[name][:, others].isfinite().all(), name
    assert found["y"][:, 20:60].isnan().any()
    assert found["state"][[0, 2]].isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("every", [16, 32, 48, 64])
@pytest.mark.parametrize("position", [None, (0, 0), (5, 77), (48, 100), (15, 33)])
def test_snapshots(count: int, every: int, position: tuple[int, ...] | None) -> None:
    case = Case(
        batch=2,
        tokens=131,
        size=4,
        heads=1,
        initial_state=True,
        every=every,
        count=count,
        position=position,
    )
    assert_matches(case)


@pytest.mark.parametrize("tokens", [1, 3, 11, 16, 27])
def test_short_pieces_with_snapshots(tokens: int) -> None:
    positions = (0, 15, 16, 37, 63)
    case = Case(batch=5, tokens=tokens, initial_state=True, every=16, count=2, position=positions)
    assert_matches(case)


@pytest.mark.parametrize("position", [None, (0, 31, 50, 7, 64)])
def test_snapshots_of_packed_documents(position: tuple[int, ...] | None) -> None:
    case = Case(
        lengths=(40, 1, 0, 70, 25), initial_state=True, every=32, count=2, position=position
    )
    assert_matches(case)


@pytest.mark.parametrize("cuts", [(0, 50, 131), (0, 1, 2, 35, 96, 131), (0, 64, 128, 131)])
def test_pieces_equal_the_whole(cuts: tuple[int, ...]) -> None:
    """Continue from the returned state and ring: same values, and gradients through all pieces."""
    case = Case(batch=2, tokens=131, every=32, count=2)

    def in_pieces(*inputs, snapshots, **_):  # type: ignore[no-untyped-def]
        ys, state, ring = [], None, None
        for start, end in pairwise(cuts):
            position = None if start == 0 else torch.full((2,), start)
            own = Snapshots(32, snapshots.weights[:, start:end], ring, position)
            piece = [x[:, start:end] for x in inputs]
            y, state, ring = wkv7(*piece, initial_state=state, snapshots=own, backend="chunked")
            ys.append(y)
        return torch.cat(ys, dim=1), state, ring

    expected = case.values_and_gradients("reference", torch.float64)
    found = case.values_and_gradients(in_pieces, torch.float64)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-10, rtol=1e-10, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs(dtype: torch.dtype) -> None:
    """Arithmetic and state are float32: against float64 on the same rounded inputs, the state is as
    exact as ever, y is rounded once, and the gradients no worse than the y's that they come from.
    """
    case = Case(batch=2, tokens=77, initial_state=True, every=32, count=1)
    for name in INPUT_NAMES:
        case.leaves[name] = case.leaves[name].to(dtype).double()
    expected = case.values_and_gradients("reference", torch.float64)
    found = case.values_and_gradients("chunked", torch.float32, input_dtype=dtype)
    assert found["y"].dtype == found["d_r"].dtype == dtype
    assert found["state"].dtype == found["d_initial_state"].dtype == torch.float32
    # y's gradient comes in rounded to y's dtype, also where the oracle is handed the exact one.
    reference = case.values_and_gradients("reference", torch.float32, input_dtype=dtype)
    assert_as_exact(found, reference, expected, floor=CHUNKED_FLOOR)


def test_mixed_dtypes_keep_their_own_gradients() -> None:
    case = Case(tokens=20)
    kinds = dict.fromkeys(INPUT_NAMES, torch.bfloat16) | {"w": torch.float32}
    leaves = {name: case.leaves[name].to(kind).requires_grad_() for name, kind in kinds.items()}
    y, state = case.run(leaves, "chunked")
    (y.float().sum() + state.sum()).backward()
    assert {name: x.grad.dtype for name, x in leaves.items() if x.grad is not None} == kinds


def test_strided_inputs() -> None:
    """Views in other layouts, as models hand them over, give the same bits."""
    case = Case(batch=2, tokens=64)
    dense = [case.leaves[name].float() for name in INPUT_NAMES]
    stacked = torch.stack(dense, dim=-2).unbind(-2)
    headed = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in dense]
    expected, _ = wkv7(*dense, backend="chunked")
    for inputs in (stacked, headed):
        y, _ = wkv7(*inputs, backend="chunked")
        assert torch.equal(y, expected)


def test_same_inputs_give_the_same_bits() -> None:
    case = Case(lengths=(70, 33, 9), size=32, initial_state=True, every=16, count=2)
    first = case.values_and_gradients("chunked", torch.float32)
    second = case.values_and_gradients("chunked", torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_many_segments_and_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny row budget cuts the work into pieces at every possible place."""
    passes = importlib.import_module("wuneng.ops.wkv7.chunk_passes")
    monkeypatch.setattr(passes, "CPU_ROW_BUDGET", 4)
    assert_matches(Case(batch=5, tokens=133, initial_state=True))
    packed = Case(lengths=(40, 100, 1, 0, 64, 64, 65), initial_state=True, every=32, count=2)
    assert_matches(packed)


def test_gradcheck() -> None:
    case = Case(heads=1, size=3, lengths=(17, 0, 4), initial_state=True, every=16, count=1)
    leaves = {name: x.requires_grad_() for name, x in case.leaves.items()}
    names = list(leaves)

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return case.run(dict(zip(names, tensors, strict=True)), "chunked")

    assert torch.autograd.gradcheck(call, tuple(leaves.values()))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(any),
    size=st.sampled_from([2, 5, 16]),
    heads=st.integers(1, 3),
    decay=st.sampled_from(["random", "slow", "fast", "mixed"]),
    a_max=st.sampled_from([1.0, 2.0]),
    every=st.sampled_from([0, 16, 32, 48]),
    count=st.integers(0, 3),
    seen=st.none() | st.integers(0, 200),
    initial_state=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_drawn_shapes(
    lengths: list[int],
    size: int,
    heads: int,
    decay: str,
    a_max: float,
    every: int,
    count: int,
    seen: int | None,
    initial_state: bool,
    seed: int,
) -> None:
    position = None
    if every and seen is not None:
        position = [(seen + 29 * index) % 201 for index in range(len(lengths))]
    case = Case(
        lengths=lengths,
        size=size,
        heads=heads,
        decay=decay,
        a_max=a_max,
        every=every,
        count=count if every else 0,
        position=position,
        initial_state=initial_state,
        seed=seed,
    )
    assert_matches(case, floor=PARALLEL_FLOOR)
