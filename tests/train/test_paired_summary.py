"""The closing sentence and the table where differences are paired over rows or seeds."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from tests.train.made_up_results import compared, one_seed, paired
from wuneng.train.paired_table import paired_table
from wuneng.train.summary import closing_sentence


def test_what_rows_show_is_not_called_noise() -> None:
    """Unpaired, 2.60 and 2.58 would be lost in the rows' own spread."""
    name = "text/bits_per_byte"
    results = compared(name, wuneng=2.56, mha=2.60, mha_shift=2.60)
    for entry in one_seed(results)["arms"].values():
        entry["standard_error"][name] = 0.25
    assert "no difference beyond noise" in closing_sentence(results)
    text = closing_sentence(paired(results, name))
    assert "difference -0.0400, 95 % interval -0.0420 to -0.0380 over 400 rows" in text
    assert "and mha-shift 2.600 on these rows" in text


@pytest.mark.parametrize(("value", "better"), [(2.595, "wuneng"), (2.605, "plain attention")])
def test_one_seed_gives_no_verdict_however_exact_its_rows_are(value: float, better: str) -> None:
    name = "text/bits_per_byte"
    results = one_seed(compared(name, wuneng=value, mha=2.60, mha_shift=2.60))
    shown, limits = closing_sentence(paired(results, name, error=1e-6)).split(". This is one seed")
    assert "on these rows" in shown
    assert ("plain attention is better" in shown) is (better == "plain attention")
    assert "credited" not in shown
    assert "no difference" not in shown
    assert "so no verdict can be given and nothing is credited" in limits


def test_over_seeds_the_interval_decides() -> None:
    name = "text/bits_per_byte"
    results = compared(name, wuneng=2.595, mha=2.60, mha_shift=2.60)
    for entry in results["arms"].values():
        entry |= {"seeds": [0, 1, 2], "quality_std": {name: 0.5}}
    paired(results, name)
    for pair in results["paired"]:
        pair["seeds"] = 3
        del pair["rows"]
    text = closing_sentence(results)
    assert "difference -0.0050, 95 % interval -0.0070 to -0.0030 over 3 seeds" in text
    assert "credited to the state heads" in text
    for pair in results["paired"]:
        pair["interval"] = [-0.02, 0.01]
    assert "no difference beyond noise" in closing_sentence(results)


def test_the_paired_table_has_a_column_per_arm_and_fits_a_terminal() -> None:
    name = "recall/accuracy@512"
    results = paired(compared(name, wuneng=1.0, mha=0.19, mha_shift=0.9), name)
    table = paired_table(results)
    assert table is not None
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table)
    text = capture.get()
    assert "+0.810 (+0.808 to +0.812)" in text
    assert "+0.710 (+0.708 to +0.712)" in text
    assert "difference from mha" in text
    assert "paired over the same 400 rows" in text
    assert paired_table(compared(name, wuneng=1.0, mha=0.19)) is None


def test_one_row_is_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    from wuneng.train import paired as module
    from wuneng.train.figures import Column

    name = "text/bits_per_byte"
    results = one_seed(compared(name, wuneng=2.0, mha=2.5))
    for rows, kept in ((1, 0), (4, 1)):
        for entry in results["arms"].values():
            entry["examples"][name] = rows
        values = {"wuneng": np.full(rows, -20.0), "mha": np.full(rows, -25.0)}
        scored = {
            arm: {name: Column(value, np.full(rows, 10.0), "bits", False)}
            for arm, value in values.items()
        }
        monkeypatch.setattr(module, "_columns", lambda run, arm, scored=scored: scored[arm])
        found = module.paired_differences(SimpleNamespace(), results["arms"])  # type: ignore[arg-type]
        assert len(found) == kept
        text = closing_sentence({**results, "paired": found})
        assert "no difference beyond noise" in text


def test_nothing_paired_with_the_baseline_has_no_caption() -> None:
    name = "text/bits_per_byte"
    results = compared(name, wuneng=1.0, mha=1.2, mha_shift=1.1)
    paired(results, name)
    results["paired"] = [one for one in results["paired"] if "mha" not in one["arms"]]
    table = paired_table(results)
    assert table is not None
    assert not table.caption
