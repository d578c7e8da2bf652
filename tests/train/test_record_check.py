"""What stands in a finished arm's records is what a run writes, or the arm is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import DataError
from wuneng.records import ArmDirectory
from wuneng.train.figures import columns
from wuneng.train.record_check import record_problem
from wuneng.train.results import finished_record

RECORD: dict[str, Any] = {
    "schema": 1,
    "arm": "mha",
    "seed": 0,
    "kind": "attention",
    "parameters": 10,
    "training_flops": 1.5,
    "steps": 2,
    "tokens": 64,
    "seconds": 0.5,
    "tokens_per_second": 128.0,
    "final_loss": None,
    "best_validation": {},
    "quality": {"text/loss": 2.0, "text/bits_per_byte": None},
    "standard_error": {"text/loss": 0.1},
}


def test_what_runs_write() -> None:
    assert record_problem(RECORD) == ""
    assert record_problem(RECORD | {"trainable_parameters": 0, "trains": ["a"]}) == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": 0}, "parameters is not a number of 1 or more"),
        ({"parameters": "many"}, "parameters is not a number of 1 or more"),
        ({"training_flops": {}}, "training_flops is not a number of 0 or more"),
        ({"tokens": 10**400}, "tokens is not a number of 0 or more"),
        ({"cache_bytes": -1}, "cache_bytes is not a number of 0 or more"),
        ({"state_bytes": "few"}, "state_bytes is not a number of 0 or more"),
        ({"seconds": True}, "seconds is not a number of 0 or more"),
        ({"quality": [1]}, "quality is not an object of numbers"),
        ({"quality": {"text/loss": "low"}}, "quality is not an object of numbers"),
        ({"standard_error": {"text/loss": -1}}, "standard_error is not an object of numbers"),
        ({"arm": 5}, "arm is not a name"),
    ],
)
def test_other_values(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    directory = ArmDirectory(tmp_path)
    directory.result.write_text(json.dumps(RECORD | change))
    with pytest.raises(DataError, match=f"result.json is no arm's result: {message}") as caught:
        finished_record(directory, check=False)
    assert "run the command again to make the arm's files anew" in str(caught.value)


def test_a_field_that_is_gone() -> None:
    assert record_problem({k: v for k, v in RECORD.items() if k != "steps"}) == "it lacks steps"


@pytest.mark.parametrize(
    "row",
    [
        {"nats": [1.0], "right": [1], "tokens": [2, 3], "bytes": []},
        {"nats": [1.0], "right": [1], "tokens": [[2]], "bytes": []},
        {"nats": [1.0, 2.0], "tokens": [2], "bytes": [3], "right": []},
    ],
)
def test_rows_that_do_not_fit_each_other(row: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"values, but|one number for each row|broadcast"):
        columns({"recall": {"64": row}})
