"""Every run directory has its learning curves as a picture, tuning runs and sweep points too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cli.commands import answer, outcome
from tests.report.made_up import write_run
from tests.report.made_up_study import write_study

TUNED = ("tune/300k-4/learning_rate-0.001", "tune/300k-4/learning_rate-0.002")


def drawn(place: Path) -> list[bool]:
    return [(place / f"curves.{suffix}").is_file() for suffix in ("png", "svg")]


def test_a_studys_report_draws_the_runs_that_tuned_it(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_study(study)
    for name in TUNED:
        write_run(study / name)
    answer("report", str(study))
    for name in TUNED:
        assert drawn(study / name) == [True, True]
        assert not (study / name / "report.html").exists()


def test_what_is_drawn_already_is_left(tmp_path: Path) -> None:
    study = tmp_path / "study"
    write_study(study)
    place = write_run(study / TUNED[0])
    for suffix in ("png", "svg"):
        (place / f"curves.{suffix}").write_bytes(b"mine")
    answer("report", str(study))
    assert (place / "curves.png").read_bytes() == b"mine"
    newest = next(place.rglob("metrics.jsonl"))
    later = (place / "curves.png").stat().st_mtime + 5
    os.utime(newest, (later, later))
    answer("report", str(study))
    assert (place / "curves.png").read_bytes().startswith(b"\x89PNG")
    (place / "curves.svg").unlink()
    answer("report", str(study))
    assert drawn(place) == [True, True]


def test_a_report_elsewhere_draws_nothing_here(tmp_path: Path) -> None:
    write_study(tmp_path / "study")
    place = write_run(tmp_path / "study" / TUNED[0])
    answer("report", str(tmp_path / "study"), "--out", str(tmp_path / "out"))
    assert drawn(place) == [False, False]


def test_a_runs_directory_is_not_searched(tmp_path: Path) -> None:
    """What lies below a plain run is none of its business."""
    write_run(tmp_path / "run")
    other = write_run(tmp_path / "run" / "kept" / "elsewhere")
    answer("report", str(tmp_path / "run"))
    assert drawn(tmp_path / "run") == [True, True]
    assert drawn(other) == [False, False]


@pytest.mark.parametrize("broken", ["metrics.jsonl", "recipe.yaml"])
def test_a_broken_run_below_costs_its_picture_only(tmp_path: Path, broken: str) -> None:
    study = tmp_path / "study"
    write_study(study)
    first, second = (write_run(study / name) for name in TUNED)
    next(first.rglob(broken)).write_text("{no row\n")
    code, _, said = outcome("report", str(study))
    assert code == 0
    assert "learning curves are missing" in said
    assert str(first) in said.replace("\n", "")
    assert (study / "report.html").is_file()
    assert drawn(second) == [True, True]
