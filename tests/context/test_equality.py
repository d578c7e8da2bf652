"""A sequence over several ranks gives one process's logits, loss and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.context.cases import cases, computed, pieces
from tests.distributed.pool import pool
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.ops import using

CASES = cases()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    """Every case on every rank; the processes are started once."""
    with pool(4) as processes:
        return processes.run(4, pieces)


def _joined(ranks: Any, name: str) -> list[dict[str, Tensor]]:
    """What each of the case's ranks found, with the pieces of the logits put together."""
    own = [found[name] for found in ranks if name in found]
    assert len(own) == CASES[name].ranks
    logits = torch.cat([found["logits"] for found in own], dim=1)
    return [{**found, "logits": logits} for found in own]


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.dtype == torch.float64])
def test_pieces_equal_the_whole_in_float64(name: str, ranks: Any) -> None:
    one = computed(CASES[name])
    for found in _joined(ranks, name):
        assert found.keys() == one.keys()
        for key, expected in one.items():
            off = (found[key] - expected).abs().max() / expected.abs().max()
            assert off <= 1e-10, f"{key}: off by {off:.1e}"


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.dtype == torch.float32])
def test_pieces_lose_in_float32_what_the_formula_loses(name: str, ranks: Any) -> None:
    with using("reference"):
        reference = computed(CASES[name])
        exact = computed(CASES[name], widened=True)
    for found in _joined(ranks, name):
        assert_as_exact(found, reference, exact, what=name, floor=CHUNKED_FLOOR)
