"""The page about a study and about a sweep: its numbers computed again, its rungs below it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.report.made_up import write, write_run
from tests.report.made_up_study import SEEDS, curve, loss, write_study
from wuneng.report import build_report, write_report
from wuneng.report.records import read_family, read_records
from wuneng.report.section import Section


def sections_of(place: Path) -> dict[str, Section]:
    [part] = build_report([read_records(place)]).parts
    return {section.key: section for section in part.sections}


def test_the_numbers_of_a_study(tmp_path: Path) -> None:
    record = write_study(tmp_path / "study")
    found = sections_of(tmp_path / "study")
    assert set(found) == {
        *("answer", "plan", "study-tokens-saved", "study-differences"),
        *("study-arms", "scaling", "tuning"),
    }
    plan = [(row["what"], row["value"]) for row in found["plan"].rows]
    assert ("sha256", "0123abcd") in plan
    assert ("changed afterwards", "study.seeds was 5") in plan
    by_name = {one["rung"]: one for one in record["rungs"]}
    for row in found["study-differences"].rows:
        arms = by_name[row["rung"]]["arms"]
        apart = np.subtract(arms[row["arm"]]["per_seed"], arms[row["against"]]["per_seed"])
        half = stats.sem(apart) * stats.t.ppf(0.975, 2)
        assert row["difference"] == pytest.approx(apart.mean())
        middle = apart.mean()
        assert (row["low"], row["high"]) == pytest.approx((middle - half, middle + half))
        assert row["smallest_effect"] == pytest.approx(0.005 * arms["wuneng"]["mean"])
        said = "better" if row["against"] == "mha" else "no difference that matters"
        assert row["conclusion"] == said
        told = {one["arms"][1]: one for one in by_name[row["rung"]]["differences"]}
        crossed = told[row["against"]].get("crossed") or {"interval": (None, None)}
        assert (row["crossed_low"], row["crossed_high"]) == tuple(crossed["interval"])
        for key in ("rows", "share_of_seeds"):
            assert row[key] == crossed.get(key)
        assert row["crossed_conclusion"] == crossed.get("conclusion")
    assert sum(row["rows"] == 30 for row in found["study-differences"].rows) == 3
    assert len(found["study-differences"].rows) == 8
    for row in found["study-arms"].rows:
        arm = by_name[row["rung"]]["arms"][row["arm"]]
        for key in ("parameters", "training_flops", "cache_bytes", "state_bytes", "mean", "spread"):
            assert row[key] == arm[key]
    tuned = found["tuning"].rows
    assert [row["figure"] for row in tuned] == [2.5, None] * 4


def test_tokens_saved_at_every_rung(tmp_path: Path) -> None:
    record = write_study(tmp_path / "study")
    section = sections_of(tmp_path / "study")["study-tokens-saved"]
    tokens = {one["rung"]: one["arms"]["mha"]["tokens"] for one in record["rungs"]}
    assert len(section.rows) == 8
    for row in section.rows:
        ours, theirs = (
            [np.array(curve(row[arm], seed, tokens[row["rung"]])) for seed in SEEDS]
            for arm in ("arm", "against")
        )
        if row["rung"] == "1M-8":  # one evaluation
            assert (row["saved"], row["low"], row["told"]) == (None, None, "cannot be told")
            continue
        never, ratios = 0, []
        for own, other in zip(ours, theirs, strict=True):
            goal, last = other[-1]
            never += bool(own[-1, 1] > last)
            ratios.append(np.interp(last, own[::-1, 1], own[::-1, 0]) / goal)
        logs = np.log(ratios)
        half = stats.t.ppf(0.975, 2) * stats.sem(logs)
        low, high = logs.mean() - half, logs.mean() + half
        assert row["saved"] == pytest.approx(1 - np.exp(logs.mean()))
        interval = (None, None) if never else pytest.approx((1 - np.exp(high), 1 - np.exp(low)))
        assert (row["low"], row["high"]) == interval
        assert (row["seeds"], row["censored"]) == (3, never)
        assert bool(never) == (row["against"] == "twin")
        assert row["told"].startswith("at most ") == bool(never)
    assert any("is at most the value shown" in line for line in section.text)
    assert any(line.startswith("Cannot be told") for line in section.text)
    [picture] = section.pictures
    assert picture.alt.count("; ") == 5, "six savings are known"
    assert "300k-4: wuneng / twin at most " in picture.alt


def test_a_study_of_accuracy_or_of_an_earlier_version_has_no_tokens_saved(tmp_path: Path) -> None:
    record = write_study(tmp_path / "study")
    for one in record["rungs"]:
        for found in one["differences"]:
            del found["tokens_saved"]
    write(tmp_path / "study" / "results.json", record)
    section = sections_of(tmp_path / "study")["study-tokens-saved"]
    assert section.pictures == ()
    assert {row["told"] for row in section.rows} == {"cannot be told"}
    write(tmp_path / "study" / "results.json", {**record, "higher_is_better": True})
    assert "study-tokens-saved" not in sections_of(tmp_path / "study")


def test_intervals_of_few_seeds_do_not_hide_the_rest_of_the_picture(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    record = write_study(tmp_path / "study")
    found = record["rungs"][0]["differences"][0]["tokens_saved"]
    alike = record["rungs"][1]["differences"][0]["tokens_saved"]
    found["interval"], alike["interval"] = [-43.0, 0.99], [0.5, 0.5]
    write(tmp_path / "study" / "results.json", record)
    section = sections_of(tmp_path / "study")["study-tokens-saved"]
    rows = {(row["rung"], row["against"]): row for row in section.rows}
    assert rows["300k-4", "mha"]["low"] == -43.0
    assert rows["300k-8", "mha"]["low"] is None, "no spread is known"
    axis = Figure().subplots()
    section.pictures[0].draw(axis)
    assert axis.get_xlim()[0] == -100
    assert any("cuts off" in line for line in section.text)
    assert any("all seeds came to the same saving" in line for line in section.text)


def test_the_scaling_fit_is_the_ladders(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    rows = sections_of(tmp_path / "study")["scaling"].rows
    assert len(rows) == 12
    for row in rows:
        # Four rungs tell three numbers, and E would be the fourth.
        found = (row["offset"], row["alpha"], row["beta"])
        assert found == pytest.approx((0, 0.12, 0.08), abs=1e-6)
        middle = np.exp(
            np.mean(np.log([loss(row["arm"], s, row["parameters"], row["tokens"]) for s in SEEDS]))
        )
        assert row["fitted"] == pytest.approx(middle, rel=1e-6)
        assert row["low"] <= row["fitted"] <= row["high"]


def test_the_rungs_are_parts_that_know_what_decides(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    family = read_family(tmp_path / "study")
    assert [records.name for records in family] == ["made-up study", "300k-4"]
    report = build_report(family)
    write_report(report, tmp_path / "study", "md")
    [row] = next(s for s in report.parts[1].sections if s.key == "answer").rows
    assert row["figure"] == "text/bits_per_byte"
    assert row["smallest_effect"] == pytest.approx(0.005 * row["value"])
    parts = json.loads((tmp_path / "study" / "report.json").read_text())["parts"]
    assert parts[0]["missing"] == []


def test_a_rung_elsewhere_is_not_read(tmp_path: Path) -> None:
    record = write_study(tmp_path / "study")
    write_run(tmp_path / "elsewhere")
    record["rungs"][0]["directory"] = "../elsewhere"
    write(tmp_path / "study" / "results.json", record)
    assert len(read_family(tmp_path / "study")) == 1


def test_a_sweep_marks_the_best_of_each_arm(tmp_path: Path) -> None:
    points = [
        {"point": f"lr-{rate}", "values": {"training.learning_rate": rate}, "arms": arms}
        for rate, arms in (
            (0.001, {"mha": {"quality": {"text/loss": 2.5}}, "wuneng": None}),
            (
                0.002,
                {"mha": {"quality": {"text/loss": 2.4}}, "wuneng": {"quality": {"text/loss": 2}}},
            ),
        )
    ]
    best = {"mha": {"point": "lr-0.002"}, "wuneng": {"point": "lr-0.002"}}
    record = {"schema": 1, "kind": "sweep", "name": "rates", "figures": ["text/loss"]}
    write(tmp_path / "results.json", record | {"points": points, "best": best, "summary": "So."})
    rows = sections_of(tmp_path)["sweep"].rows
    told = [(row["arm"], row["text/loss"], row["best"], row["diverged"]) for row in rows]
    assert told == [
        ("mha", 2.5, False, False),
        ("wuneng", None, False, True),
        ("mha", 2.4, True, False),
        ("wuneng", 2, True, False),
    ]
