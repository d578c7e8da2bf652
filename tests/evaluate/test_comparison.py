"""Pairing, pooling, correction, and what is written and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wuneng.errors import DamagedError
from wuneng.evaluate.comparison import compare
from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes, pooled
from wuneng.evaluate.results import (
    remarks,
    report_record,
    report_table,
    result_file,
    write_report,
)
from wuneng.evaluate.session import EvaluationReport, EvaluationRequest
from wuneng.records import CHECKSUMS, read_self_sealed
from wuneng.records.checksums import seal


def accuracy(*values: float) -> MetricOutcomes:
    return MetricOutcomes("ratio", np.array(values))


def task(name: str, *values: float, first: int = 0, **more: Any) -> TaskOutcomes:
    ids = [str(first + i) for i in range(len(values))]
    return TaskOutcomes(name, ids, {"acc": accuracy(*values)}, **more)


def test_items_are_paired_by_their_identity() -> None:
    model = task("t", 1, 1, 0, 0)
    baseline = TaskOutcomes("t", ["3", "2", "1"], {"acc": accuracy(1, 0, 0)})
    (found,) = compare([model], [baseline])
    (metric,) = found.metrics
    assert found.n == 3
    assert metric.model.value == pytest.approx(1 / 3)
    assert metric.difference is not None
    assert metric.difference.difference == 0.0
    assert metric.difference.p == 1.0


def test_scores_are_tested_by_their_kind() -> None:
    values = np.linspace(-5, -1, 30)
    model = TaskOutcomes("t", [str(i) for i in range(30)], {
        "acc": accuracy(*([1, 0] * 15)),
        "score": MetricOutcomes("ratio", values),
        "perplexity": MetricOutcomes("ratio", values, scale="perplexity", higher_is_better=False),
        "f1": MetricOutcomes("aggregate", np.zeros(30), aggregate=0.5),
    })  # fmt: skip
    (found,) = compare([model], [model])
    tests = {one.metric: one.difference and one.difference.test for one in found.metrics}
    assert tests == {
        "acc": "mcnemar-exact",
        "score": "paired-bootstrap",
        "perplexity": "paired-bootstrap",
        "f1": None,
    }
    assert found.metrics[3].model.value == 0.5


def test_items_that_a_metric_does_not_score_are_left_out() -> None:
    model, baseline = task("t", 1, np.nan, 0, 1), task("t", 0, 1, 0, np.nan)
    (found,) = compare([model], [baseline])
    (metric,) = found.metrics
    assert metric.model.value == pytest.approx(2 / 3)
    assert metric.difference is not None
    assert metric.difference.difference == pytest.approx(1 / 2)


def test_the_correction_counts_every_row_once() -> None:
    """Parts of a pooled group are shown in the file, and are not tests of their own."""
    parts = [task("a", *([1] * 8)), task("b", *([1] * 8))]
    others = [task("a", *([0] * 8)), task("b", *([0] * 8))]
    single, other = task("c", *([1] * 6), *([0] * 4)), task("c", *([0] * 10))
    found = compare([pooled("g", parts), *parts, single], [pooled("g", others), *others, other])
    p = {one.outcomes.task: one.metrics[0] for one in found}
    group, alone = p["g"].difference, p["c"].difference
    assert group is not None
    assert alone is not None
    assert p["g"].p_holm == pytest.approx(2 * group.p)
    assert p["c"].p_holm == pytest.approx(alone.p)
    assert p["a"].p_holm is None
    assert [one.part_of for one in found] == [None, "g", "g", None]


def test_pooling_weighs_every_item_alike() -> None:
    small = task("a", 1, 1, chance=0.5)
    large = task("b", 0, 0, 0, 0, 0, 1, chance=0.25)
    found = pooled("g", [small, large])
    assert found.metrics["acc"].estimate().value == pytest.approx(3 / 8)
    assert found.chance == pytest.approx((2 * 0.5 + 6 * 0.25) / 8)
    assert found.item_ids[:3] == ["a/0", "a/1", "b/0"]
    assert found.parts == ("a", "b")


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(ValueError, match="no item in common"):
        compare([task("t", 1)], [task("t", 1, first=5)])
    with pytest.raises(ValueError, match="no outcomes for t"):
        compare([task("t", 1)], [task("u", 1)])


MODEL = {"label": "run/wuneng", "path": "m", "parameters": 12345, "state": "keep"}
BASELINE = {"label": "run/mha", "path": "b", "parameters": 12300, "state": "keep"}


def report(*, baseline: bool = True, **settings: Any) -> EvaluationReport:
    items = [{"id": "0", "prompt": "p", "target": np.int64(1), "outcome": {"acc": 1.0}}]
    model = task("boolq", 1, 1, 1, 0, chance=0.5, majority=0.75, split="test", items=items * 4)
    other = task("boolq", 0, 1, 0, 0, items=items * 4)
    text = TaskOutcomes("validation", ["row-0", "row-1"], {
        "bits_per_byte": MetricOutcomes(
            "ratio", np.array([-3.0, -9.0]), np.array([2.0, 4.0]), "bits", False
        )
    })  # fmt: skip
    request = EvaluationRequest(Path("m"), ["boolq", "validation"], **settings)
    return EvaluationReport(
        request=request,
        models={"model": MODEL, "baseline": BASELINE if baseline else None},
        tasks=compare([model, text], [other, text] if baseline else None),
        sources={"boolq": "data/boolq_val.jsonl"},
        notes=["a note"],
    )


def test_the_record_has_the_contracts_keys(tmp_path: Path) -> None:
    file = result_file(tmp_path, "keep")
    write_report(report(), file, {"python": "3"})
    record = json.loads(file.read_text(encoding="utf-8"))
    assert file.name == "eval.json"
    assert record["schema"] == 1
    assert set(record["models"]) == {"model", "baseline"}
    boolq = record["tasks"]["boolq"]
    assert (boolq["n"], boolq["chance"], boolq["majority"]) == (4, 0.5, 0.75)
    metric = boolq["metrics"]["acc"]
    assert metric["model"] == 0.75
    assert metric["baseline"] == 0.25
    assert metric["difference"] == 0.5
    assert metric["ci95"][0] < 0.5 < metric["ci95"][1]
    assert metric["p"] == 0.5
    assert metric["p_holm"] == 1.0
    assert metric["model_stderr"] == pytest.approx(0.25)
    assert boolq["items"][0] == {
        "id": "0",
        "prompt": "p",
        "target": 1,
        "model": {"acc": 1.0},
        "baseline": {"acc": 1.0},
    }


def test_without_a_baseline_the_keys_are_there_and_empty() -> None:
    record = report_record(report(baseline=False), items=False)
    metric = record["tasks"]["boolq"]["metrics"]["acc"]
    assert record["models"]["baseline"] is None
    assert [metric[key] for key in ("baseline", "difference", "ci95", "p")] == [None] * 4
    assert "items" not in record["tasks"]["boolq"]


def shown(found: EvaluationReport) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report_table(found))
    return console.export_text()


def test_the_table_shows_both_models_and_the_difference() -> None:
    text = shown(report())
    for part in ("run/wuneng", "run/mha", "0.750 ± 0.250", "+0.500 [", "acc ↑", "bits_per_byte ↓"):
        assert part in text
    row = next(line for line in text.splitlines() if "boolq" in line)
    assert row.split("│")[-2].strip() == "0.500"  # chance
    alone = shown(report(baseline=False))
    assert "difference" not in alone
    assert "0.750 ± 0.250" in alone


def test_remarks_say_how_to_read_it() -> None:
    text = "\n".join(remarks(report(limit=4)))
    for part in ("exact McNemar", "2 comparisons", "most frequent answer: 0.750", "a note",
                 "limited to 4 items", "rows of one document"):  # fmt: skip
        assert part in text


def test_a_state_control_has_its_own_file(tmp_path: Path) -> None:
    assert result_file(tmp_path, "zero").name == "eval-state-zero.json"


def test_a_record_that_was_edited_is_refused_by_name(tmp_path: Path) -> None:
    """In a run its checksum stands beside the run's own; earlier versions wrote none."""
    seal(tmp_path, [])
    before = (tmp_path / CHECKSUMS).read_bytes()
    for state in ("keep", "zero"):
        file = result_file(tmp_path, state)
        write_report(report(), file, {})
        written = file.read_text(encoding="utf-8")
        assert read_self_sealed(file)["schema"] == 1
        file.write_text(written.replace("0.75", "0.85"), encoding="utf-8")
        with pytest.raises(DamagedError, match=rf"{file.name}: altered .*--no-verify"):
            read_self_sealed(file)
        assert read_self_sealed(file, check=False)["schema"] == 1
        (tmp_path / f"checksums.{file.name}").unlink()
        assert read_self_sealed(file)["schema"] == 1
    assert (tmp_path / CHECKSUMS).read_bytes() == before
