"""A run beside a benchmark in another directory: quality against what was timed there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.report.made_up import KINDS, TEXT, write, write_run
from wuneng.report import build_report
from wuneng.report.records import read_records

MILLISECONDS = {"wuneng": 4.0, "no-middle": 3.0, "mha": 2.0}


def bench(parameters: dict[str, int]) -> dict[str, Any]:
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
    return {"schema": 1, "models": models, "rows": rows}


def costs_of(tmp_path: Path, wrong: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Of the run's section, by cost and arm; ``wrong`` is added to the last arm's parameters."""
    run = write_run(tmp_path / "run")
    (run / "bench.json").unlink()
    arms = json.loads((run / "results.json").read_text())["arms"]
    sizes = {arm: arms[arm]["parameters"] for arm in KINDS}
    other = tmp_path / "bench"
    other.mkdir()
    write(other / "bench.json", bench(sizes | {"mha": sizes["mha"] + wrong}))
    report = build_report([read_records(run), read_records(other)])
    (section,) = (one for one in report.parts[0].sections if one.key == "pareto")
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for row in section.rows:
        found.setdefault(row["cost"], {})[row["arm"]] = (row["amount"], row["value"])
    for arm, (_, value) in found.get("decoded_per_second", {}).items():
        assert value == arms[arm]["quality"][TEXT]
    return found


def test_speed_of_the_same_models_is_shown(tmp_path: Path) -> None:
    found = costs_of(tmp_path, 0)
    for arm, milliseconds in MILLISECONDS.items():
        assert found["first_token_ms"][arm][0] == milliseconds * 128
        assert found["decoded_per_second"][arm][0] == 1e6 / milliseconds / 128


def test_speed_of_other_models_is_not(tmp_path: Path) -> None:
    found = costs_of(tmp_path, 1)
    assert not {"first_token_ms", "decoded_per_second"} & set(found)
    assert "parameters" in found
