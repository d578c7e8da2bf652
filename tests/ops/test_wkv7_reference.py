"""The oracle against the recurrence written out with numpy loops, and against known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.wkv7_cases import INPUT_NAMES, Case, boundaries
from wuneng.ops import wkv7


def by_hand(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """y and final states of every sequence, entry by entry."""
    inputs = [case.leaves[name].numpy() for name in INPUT_NAMES]
    ends = [0, case.tokens] if case.lengths is None else boundaries(case.lengths).tolist()
    y = np.zeros_like(inputs[3])
    finals = []
    for row in range(case.batch):
        for sequence in range(len(ends) - 1):
            state = np.zeros((case.heads, case.size, case.size))
            if "initial_state" in case.leaves:
                state = case.leaves["initial_state"][max(row, sequence)].numpy().copy()
            for t in range(ends[sequence], ends[sequence + 1]):
                for head in range(case.heads):
                    r, w, k, v, a, b = (x[row, t, head] for x in inputs)
                    s = state[head]
                    s = s @ (np.diag(np.exp(w)) + np.outer(a, b)) + np.outer(v, k)
                    state[head], y[row, t, head] = s, s @ r
            finals.append(state)
    return y, np.stack(finals)


@pytest.mark.parametrize(
    "case",
    [
        Case(batch=2, tokens=9, initial_state=True),
        Case(lengths=(4, 1, 0, 5), initial_state=True),
        Case(tokens=1),
    ],
    ids=["batch", "documents", "one-token"],
)
def test_reference_is_the_recurrence(case: Case) -> None:
    y, states = case.run(case.leaves, "reference")
    expected_y, expected_states = by_hand(case)
    np.testing.assert_allclose(y.numpy(), expected_y, atol=1e-12)
    np.testing.assert_allclose(states.numpy(), expected_states, atol=1e-12)


def test_snapshots_read_the_states_at_boundaries() -> None:
    """Every weight on one snapshot: y is r read from the state of a plain prefix."""
    every, count, case = 16, 2, Case(tokens=53, every=16, count=2)
    inputs = [case.leaves[name] for name in INPUT_NAMES]
    for j in range(count):
        leaves = case.leaves | {"weights": torch.zeros_like(case.leaves["weights"])}
        leaves["weights"][..., 1 + j] = 1
        y, _, ring = case.run(leaves, "reference")
        for t in range(case.tokens):
            prefix = (t // every - j) * every
            expected = torch.zeros(1, case.heads, case.size, dtype=torch.float64)
            if prefix > 0:
                _, state = wkv7(*[x[:, :prefix] for x in inputs], backend="reference")
                expected = torch.einsum("bsvk,bsk->bsv", state, inputs[0][:, t])
            torch.testing.assert_close(y[:, t], expected)
        for newest in range(count):
            _, state = wkv7(*[x[:, : (3 - newest) * every] for x in inputs], backend="reference")
            torch.testing.assert_close(ring[:, newest], state)
