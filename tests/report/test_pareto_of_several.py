"""A run beside a benchmark in another directory: quality against what was timed there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report.made_up import KINDS, TEXT, write, write_run
from wuneng.report import build_report
from wuneng.report.pareto import pareto
from wuneng.report.records import read_records
from wuneng.report.section import Section
from wuneng.report.timed import with_benchmarks

MILLISECONDS = {"wuneng": 4.0, "no-middle": 3.0, "mha": 2.0}


def bench(parameters: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for what in ("prefill", "decode"):
        for arm, milliseconds in MILLISECONDS.items():
            for length, batch in ((64, 1), (128, 1), (128, 4)):
                row = {"what": what, "operation": "x", "arm": arm, "seq_len": length}
                row |= {"batch": batch, "median_ms": milliseconds * length * batch}
                rows.append(row | {"tokens_per_second": 1e6 / milliseconds / length})
    models = {arm: {"parameters": number} for arm, number in parameters.items()}
    for row in rows:
        row |= {"dtype": "fp32", "status": "ok", "spread_ms": 0.1, "peak_bytes": None}
    made_by = {"command_line": ["wuneng", "bench", "--out", "bench0"]}
    return {"schema": 1, "models": models, "rows": rows, "environment": made_by}


def built(tmp_path: Path, *benches: dict[str, Any]) -> tuple[Section, dict[str, Any]]:
    """The section of a run beside benchmarks, and the run's arms."""
    run = write_run(tmp_path / "run")
    (run / "bench.json").unlink()
    arms = json.loads((run / "results.json").read_text())["arms"]
    places = [run]
    for number, one in enumerate(benches):
        places.append(tmp_path / f"bench{number}")
        places[-1].mkdir()
        write(places[-1] / "bench.json", one)
    report = build_report([read_records(place) for place in places])
    (section,) = (one for one in report.parts[0].sections if one.key == "pareto")
    return section, arms


def sizes(tmp_path: Path) -> dict[str, int]:
    run = write_run(tmp_path / "sizes")
    arms = json.loads((run / "results.json").read_text())["arms"]
    return {arm: arms[arm]["parameters"] for arm in KINDS}


def amounts(section: Section) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in section.rows:
        found.setdefault(row["cost"], {})[row["arm"]] = row["amount"]
    return found


def test_speed_of_the_same_models_is_shown(tmp_path: Path) -> None:
    section, arms = built(tmp_path, bench(sizes(tmp_path)))
    found = amounts(section)
    assert found["first_token_ms"] == {arm: ms * 128 for arm, ms in MILLISECONDS.items()}
    assert found["decoded_per_second"] == {arm: 1e6 / ms / 128 for arm, ms in MILLISECONDS.items()}
    for row in section.rows:
        assert row["value"] == arms[row["arm"]]["quality"][TEXT]
    assert "Decoded tokens per second: bench0, 128 tokens, batch 1, fp32." in section.text
    assert section.command.endswith("; wuneng bench --out bench0")


def test_benchmarks_of_a_part_each_are_put_together(tmp_path: Path) -> None:
    whole = bench(sizes(tmp_path))
    parts = [
        whole | {"rows": [row for row in whole["rows"] if row["what"] == what]}
        for what in ("prefill", "decode")
    ]
    assert {"first_token_ms", "decoded_per_second"} <= set(amounts(built(tmp_path, *parts)[0]))


def test_a_length_that_every_arm_reached_is_taken(tmp_path: Path) -> None:
    whole = bench(sizes(tmp_path))
    alone = {"what": "decode", "operation": "x", "arm": "mha", "seq_len": 512, "batch": 1}
    whole["rows"].append(alone | {"dtype": "fp32", "tokens_per_second": 1.0})
    found = amounts(built(tmp_path, whole)[0])
    assert len(found["decoded_per_second"]) == 3


@pytest.mark.parametrize("size", [1, None])
def test_speed_of_other_models_is_not(tmp_path: Path, size: int | None) -> None:
    known: dict[str, Any] = sizes(tmp_path) | {"mha": size}
    if size is None:
        known = dict.fromkeys(known)
    found = amounts(built(tmp_path, bench(known))[0])
    assert not {"first_token_ms", "decoded_per_second"} & set(found)
    assert "parameters" in found


@pytest.mark.parametrize(
    "wrong",
    [
        {"models": {"wuneng": None, "mha": None}},
        {"models": []},
        {"rows": [None, {"what": "decode"}, {"what": "decode", "arm": "mha", "seq_len": None}]},
        {"rows": [{"what": "decode", "arm": "mha", "seq_len": 8, "tokens_per_second": 1.0}]},
    ],
)
def test_what_is_no_figure_is_left_out(tmp_path: Path, wrong: dict[str, Any]) -> None:
    given = bench(sizes(tmp_path)) | wrong
    run, other = write_run(tmp_path / "run"), tmp_path / "other"
    other.mkdir()
    write(other / "bench.json", given)
    (run / "bench.json").unlink()
    first, _ = with_benchmarks([read_records(run), replace(read_records(other), bench=given)])
    section = pareto(first)
    assert section is not None
    shown = amounts(section)
    assert "parameters" in shown
    assert "decoded_per_second" not in shown
