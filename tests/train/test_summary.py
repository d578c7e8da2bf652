"""The closing sentence over made-up results: who is credited, and what is not claimed."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from tests.train.made_up_results import KINDS, arm, compared, one_seed
from wuneng.train.summary import closing_sentence, results_table
from wuneng.train.verdicts import Figure, Kind, better_by, judge


def test_recall_solved_by_the_control_is_the_shifts() -> None:
    text = closing_sentence(compared("recall/accuracy@64", wuneng=1.0, mha=0.19, mha_shift=1.0))
    assert text.startswith(
        "recall: wuneng 1.00 against mha 0.19, but mha-shift 1.00 as well, "
        "so the gain is the token shift's and not the state's."
    )
    assert "credited to the state" not in text


def test_parity_solved_by_the_state_arm_alone_is_the_states() -> None:
    text = closing_sentence(compared("parity/accuracy@64", wuneng=1.0, mha=0.56, mha_shift=0.56))
    assert "wuneng 1.00 against mha 0.56 and mha-shift 0.56" in text
    assert "credited to the state heads as configured" in text
    assert "shift's" not in text


def test_both_tasks_are_told_apart_in_one_sentence() -> None:
    results = compared("recall/accuracy@64", wuneng=1.0, mha=0.19, mha_shift=1.0)
    for name, value in (("wuneng", 0.99), ("mha", 0.52), ("mha-shift", 0.51)):
        results["arms"][name]["quality"]["parity/accuracy@64"] = value
        results["arms"][name]["examples"]["parity/accuracy@64"] = 512
        results["arms"][name]["quality_std"]["parity/accuracy@64"] = 0.0
    first, second = closing_sentence(results).split(". ", 1)
    recall, parity = first.split("; ")
    assert "token shift's and not the state's" in recall
    assert "credited to the state heads" in parity
    assert second.startswith("These are means over 3 seeds at 1 M parameters and 800 k tokens")


def test_a_tie_is_called_no_difference() -> None:
    text = closing_sentence(compared("recall/accuracy@64", wuneng=0.2, mha=0.19, mha_shift=0.2))
    assert "no difference beyond noise (wuneng 0.20, mha 0.19)" in text


def test_plain_attention_may_win() -> None:
    text = closing_sentence(compared("recall/accuracy@64", wuneng=0.5, mha=0.9, mha_shift=0.5))
    assert "plain attention is better (mha 0.90, wuneng 0.50)" in text
    assert "credited" not in text


def test_a_control_in_between_shares_the_gain() -> None:
    text = closing_sentence(compared("recall/accuracy@64", wuneng=0.9, mha=0.2, mha_shift=0.5))
    assert "mha-shift 0.50 in between" in text
    assert "part of the gain is the token shift's" in text


def test_a_better_control_is_said() -> None:
    text = closing_sentence(compared("recall/accuracy@64", wuneng=0.5, mha=0.2, mha_shift=0.9))
    assert "token shift's and not the state's" in text
    assert "mha-shift is the better" in text
    tied = closing_sentence(compared("recall/accuracy@64", wuneng=0.2, mha=0.2, mha_shift=0.9))
    assert "no difference beyond noise" in tied
    assert "the control does better than the state arm (mha-shift 0.90)" in tied


def test_without_a_control_nothing_is_credited() -> None:
    text = closing_sentence(compared("parity/accuracy@64", wuneng=1.0, mha=0.5))
    assert "cannot be divided between token shift and state" in text
    assert "no control arm" in text
    assert "credited to the state heads" not in text


def test_a_state_arm_without_shift_needs_no_control() -> None:
    results = compared("parity/accuracy@64", wuneng=1.0, mha=0.5)
    results["arms"]["wuneng"]["token_shift"] = False
    text = closing_sentence(results)
    assert "credited to the state heads" in text
    assert "no control arm" not in text


def test_losses_are_better_when_lower() -> None:
    name = "text/bits_per_byte"
    text = closing_sentence(compared(name, wuneng=2.458, mha=2.699, mha_shift=2.755))
    assert "text: wuneng 2.458 against mha 2.699 and mha-shift 2.755" in text
    assert "credited to the state heads" in text
    worse = closing_sentence(compared(name, wuneng=2.8, mha=2.699, mha_shift=2.755))
    assert "plain attention is better" in worse


def test_differences_within_the_standard_error_are_none() -> None:
    results = compared("text/bits_per_byte", wuneng=2.60, mha=2.70, mha_shift=2.70)
    assert "credited" in closing_sentence(results)
    for entry in results["arms"].values():
        entry["standard_error"]["text/bits_per_byte"] = 0.04
    assert "no difference beyond noise" in closing_sentence(results)


def test_few_examples_are_noisy_even_without_a_mistake() -> None:
    results = compared("recall/accuracy@64", wuneng=1.0, mha=0.75, mha_shift=0.75)
    assert "credited" in closing_sentence(results)
    for entry in results["arms"].values():
        entry["examples"]["recall/accuracy@64"] = 8
    assert "no difference beyond noise" in closing_sentence(results)


def test_seeds_that_disagree_are_noise() -> None:
    results = compared("parity/accuracy@64", wuneng=0.8, mha=0.6, mha_shift=0.6)
    for entry in results["arms"].values():
        entry |= {"seeds": [0, 1, 2], "quality_std": {"parity/accuracy@64": 0.02}}
    text = closing_sentence(results)
    assert "credited" in text
    assert "means over 3 seeds" in text
    results["arms"]["wuneng"]["quality_std"]["parity/accuracy@64"] = 0.3
    assert "no difference beyond noise" in closing_sentence(results)


def test_lengths_with_the_same_verdict_are_told_together() -> None:
    results: dict[str, Any] = {"arms": {}}
    figures = {
        "wuneng": (1.0, 1.0, 0.97, 0.55),
        "mha": (0.56, 0.54, 0.52, 0.54),
        "mha-shift": (0.56, 0.53, 0.51, 0.54),
    }
    for name, values in figures.items():
        names = [f"parity/accuracy@{length}" for length in (64, 128, 256, 512)]
        # The order of the file is not the order of the lengths.
        quality = dict(reversed(list(zip(names, values, strict=True))))
        results["arms"][name] = arm(KINDS[name], quality)
    text = closing_sentence(results)
    assert "from 64 to 256 tokens wuneng 1.00 to 0.97 against mha 0.56 to 0.52" in text
    assert "and at 512 tokens no difference beyond noise (wuneng 0.55, mha 0.54)" in text


def test_a_figure_that_is_not_a_number_wins_nothing() -> None:
    text = closing_sentence(compared("text/bits_per_byte", wuneng=None, mha=2.0, mha_shift=2.0))
    assert "no difference beyond noise" in text
    assert "credited" not in text


def test_unequal_sizes_are_said() -> None:
    results = compared("parity/accuracy@64", wuneng=1.0, mha=0.5, mha_shift=0.5)
    results["arms"]["mha"]["parameters"] = 900_000
    assert "mha has 10.0% fewer parameters than wuneng" in closing_sentence(results)


@pytest.mark.parametrize(
    ("arms", "missing"), [({"wuneng": 1.0}, "plain attention"), ({"mha": 1.0}, "state heads")]
)
def test_one_arm_compares_nothing(arms: dict[str, float], missing: str) -> None:
    text = closing_sentence(compared("recall/accuracy@64", **arms))
    assert text == f"No arm with {missing} was trained, so nothing is compared here."


def test_better_by_is_antisymmetric() -> None:
    high, low = Figure(0.9, 0.01, True), Figure(0.5, 0.01, True)
    assert better_by(high, low) == -better_by(low, high) == pytest.approx(0.4)
    assert better_by(Figure(0.52, 0.01, True), Figure(0.5, 0.01, True)) == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((1.0, 0.2, 1.0), "wuneng 1.00 against mha 0.20 on these rows, but mha-shift 1.00 as"),
        ((1.0, 0.2, 0.2), "wuneng 1.00 against mha 0.20 and mha-shift 0.20 on these rows."),
        ((0.9, 0.2, 0.5), "wuneng 0.90 against mha 0.20 on these rows, with mha-shift 0.50 in"),
        ((0.9, 0.2, None), "wuneng 0.90 against mha 0.20 on these rows."),
        ((0.2, 0.9, 0.2), "plain attention is better on these rows (mha 0.90, wuneng 0.20)"),
        ((0.5, 0.5, 0.5), "no difference beyond noise (wuneng 0.50, mha 0.50)"),
    ],
)
def test_one_seed_gives_no_verdict(values: tuple[float | None, ...], said: str) -> None:
    arms = dict(zip(("wuneng", "mha", "mha_shift"), values, strict=True))
    known = {arm: value for arm, value in arms.items() if value is not None}
    shown, limits = closing_sentence(one_seed(compared("t/accuracy@8", **known))).split(" This is ")
    assert shown.startswith(f"t: {said}")
    assert "credited" not in shown
    assert "so the gain" not in shown
    assert limits.startswith("one seed at 1 M parameters and 800 k tokens: how much another seed ")
    assert "no verdict can be given" in limits


def test_the_measured_spread_of_seeds_is_the_noise() -> None:
    """The same means: seeds that agree show a difference, seeds that do not show none."""
    for spread, expected in ((0.0, True), (0.02, True), (0.3, False)):
        results = compared("text/loss", wuneng=1.9, mha=2.0, mha_shift=2.0)
        for entry in results["arms"].values():
            entry["quality_std"] = {"text/loss": spread}
        assert ("credited to the state" in closing_sentence(results)) is expected


def test_kinds_cover_every_outcome() -> None:
    def kind(state: float, baseline: float, control: float | None, shifted: bool = True) -> Kind:
        figures = [None if v is None else Figure(v, 0.01, True) for v in (state, baseline, control)]
        return judge("t/accuracy@8", *figures, state_mixes=shifted).kind

    assert kind(0.5, 0.5, 0.5) is Kind.NONE
    assert kind(0.4, 0.5, 0.5) is Kind.BASELINE
    assert kind(0.9, 0.5, 0.9) is Kind.SHIFT
    assert kind(0.9, 0.5, 0.5) is Kind.STATE
    assert kind(0.9, 0.5, 0.7) is Kind.BOTH
    assert kind(1.0, 0.2, 0.94) is Kind.SHIFT
    assert kind(1.0, 0.2, 0.26) is Kind.STATE
    assert kind(0.9, 0.5, None) is Kind.UNATTRIBUTED
    assert kind(0.9, 0.5, 0.9, shifted=False) is Kind.STATE


def test_the_table_shows_costs_and_every_figure_of_every_arm() -> None:
    results = compared("recall/accuracy@64", wuneng=1.0, mha=0.19, mha_shift=1.0)
    results["arms"]["mha"]["quality"]["text/loss"] = 2.5
    console = Console(width=140)
    with console.capture() as capture:
        console.print(results_table(results))
    text = capture.get()
    for wanted in ("wuneng", "mha-shift", "1,000,000", "1.00e+12", "800,000", "61.5", "13,000"):
        assert wanted in text
    assert "0.190 ± 0.000" in text
    [line] = [line for line in text.splitlines() if "text/loss" in line]
    assert line.count("–") == 2
    assert "± standard error over 3 seeds" in text
    with console.capture() as capture:
        console.print(results_table(one_seed(results)))
    assert "± standard error over examples, one seed" in capture.get()


def test_a_figure_that_an_earlier_version_did_not_write_is_left_out() -> None:
    results = compared("recall/accuracy@64", wuneng=0.5, mha=0.4)
    del results["arms"]["wuneng"]["added_percent"]
    console = Console(width=100)
    with console.capture() as captured:
        console.print(results_table(results))
    told = captured.get()
    assert "–" in next(line for line in told.splitlines() if "heads add" in line)


def test_a_convolved_state_is_held_against_convolved_attention() -> None:
    results = compared("recall/accuracy@64", wuneng=1.0, mha=0.2, mha_shift=0.3)
    results["arms"]["wuneng"] |= {"token_shift": False, "short_conv": True}
    told = closing_sentence(results)
    assert "no control arm (plain attention with the short convolution, mha-conv)" in told
    results["arms"]["mha-conv"] = arm("convolved attention", {"recall/accuracy@64": 1.0})
    told = closing_sentence(results)
    assert "but mha-conv 1.00 as well, so the gain is the short convolution's" in told
