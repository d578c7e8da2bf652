"""What stands beside a model that nobody named adapts to the model; what was named is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.bench.records import PlantedClock, record_of, tiny_request
from tests.model.small import small_model
from wuneng.bench.answer import sentences
from wuneng.bench.architectures import choose
from wuneng.bench.request import BenchRequest, make_request
from wuneng.bench.session import run_benchmark
from wuneng.convert import Request, convert
from wuneng.errors import InputError

NO_ATTENTION = "the model has no attention heads to compare with"


@pytest.fixture
def pure(tmp_path: Path) -> str:
    """A pure RWKV-7 model, as a conversion of one is."""
    small_model("pure-rwkv7").save_pretrained(tmp_path / "pure")
    return str(tmp_path / "pure")


def test_a_pure_rwkv7_model_by_default(pure: str) -> None:
    said: list[str] = []
    record = run_benchmark(tiny_request(model=pure), clock=PlantedClock(0), notify=said.append)
    assert f"mha is left out: {NO_ATTENTION}" in said
    assert record["left_out"]["mha"] == NO_ATTENTION
    assert "mha" not in record["models"]
    assert {row["status"] for row in record["rows"]} == {"ok"}
    assert f"There is no ratio to mha: {NO_ATTENTION}." in list(sentences(record))
    again = BenchRequest.from_json(record["request"])
    assert again.against is None, "with --compare too, nothing was named"


@pytest.mark.parametrize("against", ["mha", "mha,rwkv7", "llama", "mha-shift", "replace"])
def test_what_was_named_is_refused(pure: str, against: str) -> None:
    with pytest.raises(InputError, match=f"--against {against.split(',')[0]}: "):
        choose(tiny_request(model=pure, against=against))


def test_the_same_model_is_not_measured_twice(tmp_path: Path) -> None:
    beside = choose(make_request(against="rwkv7")).architectures[1]
    beside.config.save_pretrained(tmp_path / "itself")
    found = choose(tiny_request(model=str(tmp_path / "itself")))
    assert [a.arm for a in found.architectures] == ["wuneng"]
    assert found.left_out == {"mha": NO_ATTENTION, "rwkv7": "the model is one itself"}


def test_nothing_is_left_out_of_a_hybrids_record(decode_record: Any) -> None:
    assert decode_record["left_out"] == {}
    assert list(decode_record["models"]) == ["wuneng", "mha", "rwkv7"]


def test_a_converted_rwkv7(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "models" / "rwkv7_tiny_834k" / "rwkv7-tiny-834k.pth"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    convert(Request(str(file), tmp_path / "tiny"))
    record = record_of(model=str(tmp_path / "tiny"), what="prefill,decode")
    assert record["left_out"]["mha"] == NO_ATTENTION
    assert {(row["arm"], row["status"]) for row in record["rows"]} >= {("wuneng", "ok")}
