"""An interval that holds zero is not printed as one that ends there."""

from __future__ import annotations

import pytest

from wuneng.study.sentences import apart
from wuneng.train.differences import Difference, in_numbers


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((-0.0002, 0.0029), "-0.000 to +0.003"),
        ((0.0002, 0.0029), "+0.000 to +0.003"),
        ((-0.0029, -0.0002), "-0.003 to -0.000"),
        ((-0.0, 0.0), "+0.000 to +0.000"),
    ],
)
def test_its_ends_keep_their_signs(interval: tuple[float, float], words: str) -> None:
    """``+0.001 (+0.000 to +0.003)`` stood above "no difference beyond noise"."""
    found = Difference(0.0013, interval, interval[0] * interval[1] > 0, True, "2 seeds")
    assert in_numbers(found, 3) == f"+0.001 ({words})"


def test_those_of_a_study_too() -> None:
    told = apart({"difference": 0.0, "interval": [-0.00002, 0.00001]})
    assert told == "+0.0000 (-0.0000 to +0.0000)"
