"""How a model is called under context parallelism: losses, documents, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.context.calls import CALLS, REFUSED, answer, answers, given, halved
from tests.context.cases import Case, arm
from tests.distributed.pool import pool
from wuneng.ops.context import context_parallel, piece_lengths, sum_gradients

#: float32, against results that sum in another order.
CLOSE = 2e-5


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    """All answers on every rank: two groups of two, which do the same."""
    with pool(4) as processes:
        found = processes.run(4, answers)
    for key in ("calls", "checkpointed", "bfloat16"):
        for first, second in ((0, 2), (1, 3)):
            _assert_same(found[first][key], found[second][key])
    return found


def _assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    else:
        for key in one:
            _assert_same(one[key], other[key])


def _assert_close(found: list[dict[str, Tensor]], expected: dict[str, Tensor]) -> None:
    logits = torch.cat([one["logits"] for one in found], dim=1)
    for one in found:
        for key, wanted in expected.items():
            got = logits if key == "logits" else one[key]
            # Of a gradient that is a small difference, against all of them.
            scale = max(float(wanted.abs().max()), 1e-3)
            off = float((got - wanted).abs().max()) / scale
            assert off <= CLOSE, f"{key}: off by {off:.1e}"


@pytest.mark.parametrize("name", CALLS)
def test_a_call_in_pieces_answers_as_a_whole(name: str, ranks: Any) -> None:
    _assert_close([one["calls"][name] for one in ranks[:2]], answer(CALLS[name]()))


def test_the_backward_pass_of_checkpointed_layers_runs_outside_the_context(ranks: Any) -> None:
    _assert_close([one["checkpointed"] for one in ranks[:2]], answer(given()))


def test_a_group_of_one_changes_no_bit(ranks: Any) -> None:
    for one in ranks:
        _assert_same(one["alone"], answer(given()))


def test_autocast_does_not_round_the_state_between_ranks(ranks: Any) -> None:
    with torch.no_grad():
        model = Case(arm("wuneng"), dtype=torch.float32).model()
        exact = model(**given(labels=None)).logits
    found = torch.cat([one["bfloat16"] for one in ranks[:2]], dim=1)
    # The second rank's tokens are those whose state has crossed.
    loss, own = ((x - exact)[:, 27:].square().mean().sqrt() for x in (found, halved()))
    assert loss <= 1.2 * own


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_on_every_rank(name: str, ranks: Any) -> None:
    for one in ranks:
        assert REFUSED[name][1] in one["refused"][name]


def test_a_group_is_needed() -> None:
    with pytest.raises(ValueError, match="start the processes with torchrun"):
        context_parallel().__enter__()
    with pytest.raises(ValueError, match="start the processes with torchrun"):
        sum_gradients([])


def test_pieces_differ_by_a_token_and_are_never_empty() -> None:
    assert piece_lengths(10, 4) == (3, 3, 2, 2)
    with pytest.raises(ValueError, match="a sequence of 3 tokens cannot be cut for 4 ranks"):
        piece_lengths(3, 4)
