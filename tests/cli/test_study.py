"""Sweeps and studies as commands: what they would take, and what they leave to look at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.commands import answer, outcome

STUDY = "{primary: recall/loss, tune: {training.learning_rate: [1.0e-3, 2.0e-3]}, seeds: 2}"


@pytest.mark.usefixtures("tiny")
def test_a_study_says_what_it_takes_and_what_it_can_show() -> None:
    planned = answer("train", "tiny.yaml", "--set", f"study={STUDY}", "--dry-run", "--no-measure")
    assert [(row["stage"], row["arm"], row["runs"]) for row in planned["runs"]] == [
        ("tune", "wuneng", 2),
        ("tune", "mha", 2),
        ("compare", "wuneng", 2),
        ("compare", "mha", 2),
    ]
    code, out, _ = outcome("train", "tiny.yaml", "--set", f"study={STUDY}", "--dry-run")
    assert code == 0
    assert "all of it: 8 runs, about " in out
    share = planned["plan"]["minimum_detectable_effect"]
    assert f"2 fresh seeds show a difference of {share:.2%} of recall/loss" in out
    assert not Path("runs").exists()


@pytest.mark.usefixtures("tiny")
def test_a_large_study_is_told_in_one_screen() -> None:
    """One row for each arm; every run with --verbose, and with --json always."""
    large = STUDY[:-1] + ", ladder: {sizes: [1M, 2M, 3M], tokens_per_parameter: [1, 2]}}"
    asked = ("train", "tiny.yaml", "--set", f"study={large}", "--dry-run", "--no-measure")
    code, short, err = outcome(*asked)
    assert code == 0, err
    assert len(short.splitlines()) <= 24
    assert "each of the 24 rows" in short
    code, whole, err = outcome(*asked, "--verbose")
    assert code == 0, err
    rows = answer(*asked)["runs"]
    assert len(rows) == 24
    for arm in ("wuneng", "mha"):
        own = [row for row in rows if row["arm"] == arm]
        sizes = [row["parameters"] for row in own]
        flops = sum(row["runs"] * row["training_flops"] for row in own)
        line = next(line for line in short.splitlines() if f"│ {arm} " in line)
        assert f"{min(sizes):,} to {max(sizes):,}" in line
        assert f" {sum(row['runs'] for row in own)} " in line
        assert f"{flops:.2e}" in line
        assert all(f"{size:,}" in whole for size in sizes)


@pytest.mark.usefixtures("tiny")
def test_a_sweep_says_what_it_takes() -> None:
    change = "training.steps=2,4"
    planned = answer("train", "tiny.yaml", "--set", change, "--dry-run", "--no-measure")
    assert [(row["place"], row["arm"], row["tokens"]) for row in planned["runs"]] == [
        ("steps-2", "wuneng", 128),
        ("steps-2", "mha", 128),
        ("steps-4", "wuneng", 256),
        ("steps-4", "mha", 256),
    ]
    assert planned["plan"] is None


@pytest.mark.usefixtures("tiny", "pages")
def test_a_study_leaves_a_page_about_its_rungs() -> None:
    code, out, err = outcome("train", "tiny.yaml", "--set", f"study={STUDY}", "--quiet")
    assert code == 0, err
    assert "By recall/loss, as planned (" in out
    assert "report.html shows it" in out
    assert Path("runs/tiny/report.html").is_file()
    plan = json.loads(Path("runs/tiny/study-plan.json").read_text())
    results = json.loads(Path("runs/tiny/compare/all/results.json").read_text())
    assert results["study"]["plan_sha256"] == plan["sha256"]
    assert plan["sha256"] in Path("runs/tiny/report.html").read_text()
    code, out, err = outcome("report", "tiny")
    assert code == 0, err
    assert "The report is runs/tiny/report.html" in out
