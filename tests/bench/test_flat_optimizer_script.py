"""What ``benchmarks.flat_optimizer`` compares is the same training."""

from __future__ import annotations

import pytest
import torch

from benchmarks.flat_optimizer import MODEL, Step, measured
from wuneng.bench.architectures import choose
from wuneng.bench.request import BenchRequest


def test_both_ways_learn_the_same() -> None:
    arms = choose(BenchRequest(model=MODEL, seq_lens=(8,), against=("mha",))).architectures
    ids = torch.randint(256, (1, 8), generator=torch.Generator().manual_seed(1))
    for arm in arms:
        many, flat = (Step(arm, way, 1, 8) for way in ("tensors", "flat"))
        before = [p.detach().clone() for p in many.model.parameters()]
        for number in range(3):
            assert flat.backward(ids) == pytest.approx(many.backward(ids), rel=1e-5)
            many.update()
            flat.update()
            # Later a rounding of a small gradient may turn a whole step of Adam.
            assert number > 0 or _close(many, flat)
        after = many.model.parameters()
        assert not any(torch.equal(p, q) for p, q in zip(after, before, strict=True))
        assert len(flat.trained) == len(flat.optimizer.param_groups) < len(many.trained)


def _close(one: Step, other: Step) -> bool:
    pairs = zip(one.model.named_parameters(), other.model.named_parameters(), strict=True)
    return all(
        left == right and torch.allclose(p, q, rtol=1e-6, atol=1e-7)
        for (left, p), (right, q) in pairs
    )


def test_rows_of_two_arms() -> None:
    found = measured(1, 8, 2)
    rows = {(row["arm"], row["way"]): row for row in found["rows"]}
    assert set(rows) == {(a, w) for a in ("wuneng", "mha") for w in ("tensors", "flat")}
    for row in found["rows"]:
        assert 0 < row["update_milliseconds"] < row["milliseconds"]
        assert 0 < row["update_share"] < 1
    assert rows["mha", "tensors"]["gained"] == rows["mha", "tensors"]["gained_by_update"] == 0
    assert rows["wuneng", "flat"]["tensors"] == 3, "with decay, without, and at twice the rate"
    assert rows["wuneng", "tensors"]["tensors"] > rows["mha", "tensors"]["tensors"]
