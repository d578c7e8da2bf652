"""What ``benchmarks.decoded_token`` compares is comparable."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.decoded_token import TEXT, matched, measured
from tests.model.decoded import counted
from wuneng.ops import native
from wuneng.recipe import load_recipe


def test_the_arms_have_as_many_parameters_each() -> None:
    others = ("text", "mha-shift", "rwkv7", "interleaved")
    ours, *plain = (arm.parameters for arm in matched(64, 2, 2, 1, others))
    assert len(plain) == 5
    # a feed-forward layer is widened by fours
    assert all(abs(ours - other) <= 2 * 3 * 64 * 2 for other in plain)


def test_one_arm_is_wired_as_the_recipe_for_text(repository: Path) -> None:
    own = load_recipe(repository / "recipes" / "text.yaml").model
    assert {name: getattr(own, name) for name in TEXT} == TEXT


@pytest.mark.skipif(native.library(64) is None, reason="no C compiler on this machine")
def test_both_ways_are_timed_and_only_one_calls_the_modules() -> None:
    with counted() as taken:
        found = measured((64, 1, 1, 1), 16, 2, 2)
    # Of two arms a prompt and its last token, then four rounds of both arms both ways.
    assert (taken.count(True), taken.count(False)) == (2 + 4 * 2, 2 + 4 * 2)
    rows = {(row["arm"], row["way"]): row for row in found["rows"]}
    assert set(rows) == {(a, w) for a in ("wuneng", "mha") for w in ("modules", "one call")}
    assert rows["mha", "modules"]["of_mha"] == rows["mha", "one call"]["of_mha"] == 1
    assert rows["mha", "modules"]["gained"] == rows["wuneng", "modules"]["gained"] == 1
    assert all(row["fastest_milliseconds"] <= row["milliseconds"] for row in rows.values())
