"""``--profile``: a trace and a table of where the time went, and no bit of the run changed."""

from __future__ import annotations

import gzip
import io
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.model.small import small_model
from tests.train.small_run import recipe
from tests.train.test_loop import rows, train, weights
from tests.train.tiny import Watcher, tiny_job, tiny_training
from wuneng.errors import InputError
from wuneng.train import run
from wuneng.train.display import Progress
from wuneng.train.profile_table import profile_tables, read_profiles
from wuneng.train.signals import Interrupted
from wuneng.train.step_range import StepRange, step_range


def job(place: Path, profile: StepRange | None, **changes: Any) -> Any:
    torch.manual_seed(0)
    training = tiny_training(steps=5, **changes)
    return tiny_job(place, training, model=small_model(), profile=profile)


def test_a_profile_has_a_trace_and_tells_the_parts_apart(tmp_path: Path) -> None:
    profiled = job(tmp_path / "profiled", StepRange(2, 3))
    train(profiled)
    place = tmp_path / "profiled" / "profile"
    with gzip.open(place / "trace.json.gz") as stream:
        events = json.load(stream)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"step 2", "step 3", "part: data", "part: state heads"} <= names
    assert not {"step 1", "step 4"} & names
    where = json.loads((place / "where.json").read_text())
    parts = {row["part"]: row for row in where["parts"]}
    assert where["steps"] == [2, 3]
    assert {"attention", "state heads", "middle heads", "feed-forward", "output"} <= parts.keys()
    assert {"optimiser", "data", "embedding"} <= parts.keys()
    assert parts["attention"]["backward_ms"] > 0
    assert sum(row["share"] for row in parts.values()) == pytest.approx(1.0)
    shares = [row["share"] for row in where["operators"]]
    assert shares == sorted(shares, reverse=True)
    assert any(row["operator"].startswith("aten::") for row in where["operators"])

    plain = job(tmp_path / "plain", None)
    train(plain)
    assert weights(plain) == weights(profiled)
    assert rows(plain) == rows(profiled)
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_is_stopped_keeps_what_was_recorded(tmp_path: Path) -> None:
    def at_step(progress: Progress) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(job(tmp_path, StepRange(3, 5)), Watcher(at_step))
    assert json.loads((tmp_path / "profile" / "where.json").read_text())["steps"] == [3, 3]


def test_steps_that_were_taken_before_are_told(tmp_path: Path) -> None:
    train(job(tmp_path, None))
    watcher = Watcher()
    train(job(tmp_path, StepRange(1, 2)), watcher)
    assert watcher.warnings == [
        "--profile 1-2: these steps were taken before this session; nothing was recorded"
    ]


@pytest.mark.parametrize(
    "text", ["", "a-b", "3-2", "0-2", "5-13", "-3", "1-2-3", "1.5-2", "13", "99999999999999999999"]
)
def test_bad_ranges_are_refused_by_name(text: str) -> None:
    with pytest.raises(InputError, match=r"^--profile: expected .*got '" + text):
        step_range(text, 12, "--profile")


def test_a_range_that_fills_the_memory_is_refused() -> None:
    with pytest.raises(InputError, match="at most 100 steps"):
        step_range("1-101", 1000, "--profile")
    assert step_range("901-1000", 1000, "--profile") == StepRange(901, 1000)
    assert step_range("7", 12, "--profile") == StepRange(7, 7)


def test_every_arm_of_a_run_is_profiled_and_told_in_80_columns(tmp_path: Path) -> None:
    found = run(
        recipe(tmp_path), display=Watcher(), runs_root=tmp_path / "runs", profile=StepRange(2, 2)
    )
    profiles = read_profiles(found.directory)
    assert set(profiles) == {"wuneng", "mha"}
    stream = io.StringIO()
    console = Console(file=stream, width=80)
    for table in profile_tables(profiles):
        console.print(table)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "where the time of steps 2-2 went, by part" in " ".join(text.split())
    assert "state heads" in text
    assert "aten::" in text
