"""The page about a study and about a sweep: its numbers computed again, its rungs below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tests.report.made_up import write, write_run
from wuneng.report import build_report, write_report
from wuneng.report.records import read_family, read_records
from wuneng.report.section import Section

SEEDS = (3, 4, 5)
#: Size, tokens for each parameter.
RUNGS = {"300k-4": (3e5, 4.0), "300k-8": (3e5, 8.0), "1M-4": (1e6, 4.0), "1M-8": (1e6, 8.0)}
GAIN = {"wuneng": 0.97, "mha": 1.0, "twin": 0.9702}


def loss(arm: str, seed: int, parameters: float, tokens: float) -> float:
    luck = 1 + 0.002 * (seed - 4) + 0.0002 * (len(arm) - 4) * (seed % 2)
    return GAIN[arm] * luck * 30 * parameters**-0.12 * tokens**-0.08


def rung(name: str) -> dict[str, Any]:
    size, ratio = RUNGS[name]
    arms = {}
    for arm in GAIN:
        values = [loss(arm, seed, size, ratio * size) for seed in SEEDS]
        arms[arm] = {
            "kind": "attention",
            "parameters": size,
            "tokens": ratio * size,
            "seconds": 9.0,
            "training_flops": 6 * ratio * size**2,
            "tokens_per_second": 100.0,
            "cache_bytes": 64,
            "state_bytes": 0,
            "seeds": list(SEEDS),
            "per_seed": values,
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)),
            "standard_error": float(stats.sem(values)),
            "exploratory": {},
            "tuned": {"training.learning_rate": 0.002},
            "at_edge": [],
        }
    differences = []
    for other in ("mha", "twin"):
        apart = np.subtract(arms["wuneng"]["per_seed"], arms[other]["per_seed"])
        interval = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
        found = {"arms": ["wuneng", other], "difference": float(apart.mean()), "seeds": 3}
        found |= {"interval": [interval.low, interval.high], "test": "paired-t"}
        differences.append(found | {"p": float(stats.ttest_1samp(apart, 0).pvalue)})
    tried = [{"values": {"training.learning_rate": 0.001}, "figures": {"wuneng": 2.5, "mha": None}}]
    return {
        "rung": name,
        "size": size,
        "tokens_per_parameter": ratio,
        "arms": arms,
        "directory": f"compare/{name}",
        "differences": differences,
        "tuning": {"grid": {"training.learning_rate": [0.001, 0.002]}, "tried": tried},
    }


def write_study(place: Path) -> dict[str, Any]:
    record = {
        "schema": 1,
        "kind": "study",
        "name": "made-up study",
        "reference": "wuneng",
        "plan": {"sha256": "0123abcd", "changes": ["study.seeds was 5"]},
        "match": "parameters",
        "primary": "text/bits_per_byte",
        "higher_is_better": False,
        "smallest_effect": 0.005,
        "rungs": [rung(name) for name in RUNGS],
        "summary": "By text/bits_per_byte, as planned.",
        "sentences": ["By text/bits_per_byte, as planned.", "At 1M-x4 more."],
    }
    place.mkdir(parents=True)
    write(place / "results.json", record)
    write_run(place / "compare" / "300k-4", name="300k-4")
    return record


def sections_of(place: Path) -> dict[str, Section]:
    [part] = build_report([read_records(place)]).parts
    return {section.key: section for section in part.sections}


def test_the_numbers_of_a_study(tmp_path: Path) -> None:
    record = write_study(tmp_path / "study")
    found = sections_of(tmp_path / "study")
    assert set(found) == {
        *("answer", "plan", "study-differences", "study-arms", "scaling", "tuning")
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
    assert len(found["study-differences"].rows) == 8
    for row in found["study-arms"].rows:
        arm = by_name[row["rung"]]["arms"][row["arm"]]
        for key in ("parameters", "training_flops", "cache_bytes", "state_bytes", "mean", "spread"):
            assert row[key] == arm[key]
    tuned = found["tuning"].rows
    assert [row["figure"] for row in tuned] == [2.5, None] * 4


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
