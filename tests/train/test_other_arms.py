"""The closing words speak of every arm, not only of the three that a verdict needs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.train.made_up_results import arm, compared, one_seed
from wuneng.train.summary import closing_sentence

NAME = "text/bits_per_byte"


def with_others(**others: float) -> dict[str, Any]:
    results = compared(NAME, wuneng=2.0, mha=2.2, mha_shift=2.1)
    for name, value in others.items():
        results["arms"][name.replace("_", "-")] = arm("hybrid", {NAME: value})
    return results


def test_every_other_arm_is_held_against_the_state_arm() -> None:
    text = closing_sentence(with_others(no_middle=1.9, replace=2.4, rwkv7=2.0))
    assert (
        "The other arms beside wuneng: text: no-middle 1.900 (better), replace 2.400 (worse), "
        "rwkv7 2.000 (no difference beyond noise)." in text
    )
    assert "wuneng 2.000 against mha 2.200" in text, "the verdict stays"


def test_of_one_seed_it_is_said_for_these_rows() -> None:
    text = closing_sentence(one_seed(with_others(no_middle=1.9)))
    assert "The other arms beside wuneng on these rows: text: no-middle 1.900 (better)." in text


def test_three_arms_need_no_more_words() -> None:
    assert "other arms" not in closing_sentence(with_others())


def test_lengths_are_told_apart_where_they_differ() -> None:
    results = compared("recall/accuracy@64", wuneng=0.5, mha=0.2)
    results["arms"]["gated"] = arm("hybrid", {"recall/accuracy@64": 0.9})
    for name, value in (("wuneng", 0.5), ("mha", 0.2), ("gated", 0.5)):
        for part, more in (("quality", value), ("examples", 512), ("quality_std", 0.0)):
            results["arms"][name][part]["recall/accuracy@128"] = more
    text = closing_sentence(results)
    assert "gated 0.90 to 0.50 (better at 64 tokens; no difference beyond noise at 128" in text


@pytest.mark.parametrize("kind", ["attention", "hybrid"])
def test_arms_of_one_kind_are_compared_with_the_first(kind: str) -> None:
    arms = {"a": arm(kind, {NAME: 2.0}), "b": arm(kind, {NAME: 1.5}), "c": arm(kind, {NAME: 2.5})}
    text = closing_sentence({"name": "made-up", "reference": "a", "arms": arms})
    assert "so nothing is credited to the state" in text
    assert "The other arms beside a: text: b 1.500 (better), c 2.500 (worse)." in text


def test_an_arm_alone_is_compared_with_nothing() -> None:
    results = {"name": "made-up", "reference": "a", "arms": {"a": arm("hybrid", {NAME: 2.0})}}
    assert closing_sentence(results).endswith("so nothing is compared here.")
