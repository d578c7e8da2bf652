"""One-token decoding against the recurrence."""

from __future__ import annotations

import pytest
import torch

from tests.ops.wkv7_cases import INPUT_NAMES, Case
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import Snapshots, wkv7, wkv7_step


def float32_leaves(case: Case) -> dict[str, torch.Tensor]:
    return {name: x.float() for name, x in case.leaves.items()}


def loops(case: Case) -> list[tuple[torch.Tensor, ...]]:
    """The token loop in float32 and in float64."""
    return [case.run(leaves, "reference") for leaves in (float32_leaves(case), case.leaves)]


@pytest.mark.parametrize("initial_state", [False, True])
def test_steps_equal_the_loop(initial_state: bool) -> None:
    case = Case(batch=3, tokens=40, size=32, initial_state=initial_state)
    leaves = float32_leaves(case)
    state, ys = leaves.get("initial_state"), []
    for t in range(case.tokens):
        y, state = wkv7_step(*[leaves[name][:, t] for name in INPUT_NAMES], state)
        ys.append(y)
    assert state is not None
    assert_as_exact((torch.stack(ys, 1), state), *loops(case))


def test_step_is_differentiable() -> None:
    case = Case(tokens=1, initial_state=True)

    def call(*inputs, initial_state, **_):  # type: ignore[no-untyped-def]
        y, state = wkv7_step(*[x[:, 0] for x in inputs], initial_state)
        return y.unsqueeze(1), state

    expected = case.values_and_gradients("reference", torch.float64)
    found = case.values_and_gradients(call, torch.float64)
    assert_as_exact(found, expected, expected)


@pytest.mark.parametrize("prefill", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_decoding_with_snapshots_equals_the_whole(prefill: int, count: int) -> None:
    """Prefill, then token by token through the one-token path, across several boundaries."""
    case = Case(batch=2, tokens=90, every=16, count=count)
    leaves = float32_leaves(case)
    ys, state, ring = [], None, None
    spans = [(0, prefill)] if prefill else []
    spans += [(t, t + 1) for t in range(prefill, case.tokens)]
    with torch.no_grad():
        for start, end in spans:
            position = None if start == 0 else torch.full((2,), start)
            weights = leaves["weights"][:, start:end]
            y, state, ring = wkv7(
                *[leaves[name][:, start:end] for name in INPUT_NAMES],
                initial_state=state,
                snapshots=Snapshots(16, weights, ring, position),
            )
            ys.append(y)
    assert state is not None
    assert ring is not None
    assert_as_exact((torch.cat(ys, 1), state, ring), *loops(case), floor=CHUNKED_FLOOR)


def test_sequences_at_different_positions_decode_together() -> None:
    case = Case(batch=3, tokens=1, initial_state=True, every=16, count=2, position=(15, 32, 7))
    with torch.no_grad():
        found = case.run(float32_leaves(case), "chunked")
    assert_as_exact(found, *loops(case))


def test_packed_decoding_of_one_document() -> None:
    case = Case(lengths=(1,), initial_state=True)
    with torch.no_grad():
        found = case.run(float32_leaves(case), "chunked")
    assert_as_exact(found, *loops(case))


def test_state_stays_float32_and_is_not_overwritten() -> None:
    case = Case(batch=2, tokens=1, initial_state=True)
    token = [case.leaves[name][:, 0].bfloat16() for name in INPUT_NAMES]
    state = case.leaves["initial_state"].float()
    before = state.clone()
    y, new = wkv7_step(*token, state)
    assert y.dtype == torch.bfloat16
    assert new.dtype == torch.float32
    assert torch.equal(state, before)
    assert not torch.equal(new, before)
