"""The sentences that a study ends with."""

from __future__ import annotations

from typing import Any

import pytest

from wuneng.study.sentences import study_sentences


def _difference(
    other: str,
    conclusion: str,
    saved: float | None,
    interval: tuple[float | None, float] | None = None,
    *,
    censored: int = 0,
) -> dict[str, Any]:
    found = {"saved": saved, "interval": interval, "orders": 2, "censored": censored}
    return {
        "arms": ["wuneng", other],
        "difference": -0.25,
        "interval": [-0.3, -0.2],
        "conclusion": conclusion,
        "tokens_saved": None if saved is None else found,
    }


def _record(*rungs: list[dict[str, Any]]) -> dict[str, Any]:
    others = [found["arms"][1] for found in (rungs[0] if rungs else ())]
    arms = {name: {"mean": 2.0, "seeds": [1, 2]} for name in ("wuneng", *others)}
    return {
        "primary": "text/bits_per_byte",
        "reference": "wuneng",
        "plan": {"sha256": "0123456789abcdef", "changes": ["seeds"]},
        "rungs": [
            {"rung": f"{place}M-x2", "arms": arms, "differences": differences}
            for place, differences in enumerate(rungs, 1)
        ],
    }


def test_the_answer_over_all_rungs_comes_first() -> None:
    one = [
        _difference("mha", "better", 0.45, (0.4, 0.5)),
        _difference("middle", "undecided", 0.1, (None, 0.2), censored=1),
    ]
    two = [
        _difference("mha", "better", 0.32, (0.2, 0.41)),
        _difference("middle", "better", 0.13),
    ]
    told = study_sentences(_record(one, two))
    assert told[0] == (
        "By text/bits_per_byte, as planned (0123456789ab): wuneng is better than mha at every size "
        "and length, and wuneng needs from 32% fewer tokens (95 % interval 20% to 41%) at 2M-x2 to "
        "45% fewer tokens (95 % interval 40% to 50%) at 1M-x2 for mha's loss; wuneng against "
        "middle is undecided at 1M-x2, wuneng is better than middle at 2M-x2, and wuneng needs "
        "from at most 10% fewer tokens at 1M-x2 to 13% fewer tokens at 2M-x2 for middle's loss."
    )
    assert told[1].startswith("At 1M-x2 over 2 seeds wuneng 2.0000; mha 2.0000 (wuneng is better, ")
    assert "middle 2.0000 (undecided, -0.2500 (-0.3000 to -0.2000); tokens saved at most" in told[1]
    assert told[2].startswith("At 2M-x2 ")
    assert told[3:] == [
        "Changed after the plan was written: seeds.",
        "Other figures are exploratory.",
    ]


def test_one_rung_and_none() -> None:
    same = [_difference("mha", "no difference that matters", None)]
    told = study_sentences(_record(same))
    apart = "a difference of -0.2500 (-0.3000 to -0.2000)"
    assert f"): wuneng and mha do not differ by what matters: {apart}." in told[0]
    diverged = _record([])
    diverged["rungs"][0]["arms"] = {"wuneng": None, "mha": None}
    told = study_sentences(diverged)
    assert told[0].endswith("nothing could be compared.")
    assert told[1] == "At 1M-x2 wuneng diverged, so nothing is compared."


@pytest.mark.parametrize(
    ("saved", "interval", "censored", "expected"),
    [
        (0.38, (0.3, 0.45), 0, "38% fewer tokens (95 % interval 30% to 45%)"),
        (0.03, (-0.05, 0.11), 0, "3% fewer tokens (95 % interval -5% to 11%)"),
        (-0.12, (-0.2, -0.05), 0, "12% more tokens (95 % interval 5% to 20%)"),
        (0.38, None, 0, "38% fewer tokens"),
        (0.1, None, 1, "at most 10% fewer tokens"),
        (-0.1, (None, 0.2), 1, "at least 10% more tokens"),
        (0.0, (None, 0.0), 2, "more tokens than it had"),
    ],
)
def test_the_tokens_saved_of_one_rung(
    saved: float, interval: tuple[float | None, float] | None, censored: int, expected: str
) -> None:
    found = [_difference("mha", "undecided", saved, interval, censored=censored)]
    first = study_sentences(_record(found))[0]
    assert first.endswith(f"is undecided, and wuneng needs {expected} for mha's loss.")


def test_a_rung_whose_curves_do_not_say_is_not_in_the_saving() -> None:
    known = [_difference("mha", "better", 0.38, (0.3, 0.45))]
    first = study_sentences(_record(known, [_difference("mha", "better", None)]))[0]
    assert "needs 38% fewer tokens (95 % interval 30% to 45%) at 1M-x2 for mha's loss" in first


def test_what_does_not_hold_for_fresh_rows_is_said() -> None:
    found = _difference("mha", "better", None)
    found["crossed"] = {"interval": [-0.52, 0.02], "conclusion": "undecided"}
    told = study_sentences(_record([found]))
    assert "-0.2500 (-0.3000 to -0.2000); over fresh rows too: -0.5200 to +0.0200" in told[1]
    assert told[2] == (
        "At 1M-x2, over fresh rows as well as fresh seeds, wuneng against mha is undecided."
    )
    found["crossed"]["conclusion"] = "better"
    assert "as well as fresh seeds" not in " ".join(study_sentences(_record([found])))
