"""One of several processes fails: the others stop, soon, and say which one it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import faults
from tests.distributed.cases import run_text
from tests.distributed.pool import Pool, pool
from tests.distributed.test_resume import metrics, recipe
from wuneng.distributed.processes import ALONE
from wuneng.errors import MissingProcess, NonFiniteError

#: Between two signs of life, so that tests need not wait for seconds.
BEAT = 0.25


@pytest.fixture
def processes() -> Iterator[Pool]:
    """New ones for each test, which kills some of them."""
    with pool(4) as started:
        yield started


def ends(processes: Pool, size: int, case: Callable[..., Any], *args: Any, seconds: float) -> list:
    processes.begin(size, case, *args, beat=BEAT, seconds=seconds)
    return processes.end(size)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_is_killed_in_a_step(processes: Pool, tmp_path: Path, rank: int) -> None:
    path, began = recipe(tmp_path / "run"), time.monotonic()
    found = ends(processes, 2, faults.at_step, path, rank, 4, faults.killed, seconds=1200)
    assert time.monotonic() - began < 600, "it is noticed, not waited for"
    error = found[1 - rank]
    assert isinstance(error, MissingProcess)
    assert f"process {rank} of 2 was killed or does not run any more" in str(error)
    # What was saved at step 2 is continued.
    assert run_text(ALONE, path, (), None)[0] == "finished"
    assert [row["step"] for row in metrics(path)] == list(range(1, 10))


def test_a_process_is_killed_in_a_validation(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    found = ends(processes, 2, faults.while_validating, path, 1, faults.killed, seconds=60)
    assert isinstance(found[0], MissingProcess)
    assert "process 1 of 2 was killed or does not run any more" in str(found[0])
    before = metrics(path)
    assert [row["step"] for row in before] == [1, 2, 3], "the validated step is not recorded"
    assert run_text(ALONE, path, ("training.checkpoint_every=3",), None)[0] == "finished"
    rows = metrics(path)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert rows[:3] == before
    assert [row["step"] for row in rows if "validation" in row] == [4, 8]


@pytest.mark.parametrize("rank", [0, 2])
def test_of_four_the_right_one_is_named_by_all(processes: Pool, tmp_path: Path, rank: int) -> None:
    """Killed while the first saves, or that one itself."""
    path = recipe(tmp_path / "run")
    found = ends(processes, 4, faults.while_saving, path, rank, faults.killed, seconds=60)
    told = [str(found[other]) for other in range(4) if other != rank]
    assert all(text.startswith(f"process {rank} of 4 was killed") for text in told)
    assert all(";" not in text for text in told), "no other one"
    assert run_text(ALONE, path, (), None)[0] == "finished"


def test_a_process_that_hangs_is_named(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    began = time.monotonic()
    processes.begin(2, faults.at_step, path, 1, 3, faults.hanging, beat=BEAT, seconds=8)
    error = processes.end(1)[0]
    assert isinstance(error, MissingProcess)
    assert "process 1 of 2 is alive, but does not come to where the others wait" in str(error)
    assert time.monotonic() - began < 60


def test_a_process_that_is_stopped_is_named(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    processes.begin(2, faults.at_step, path, 1, 3, faults.stopped, beat=BEAT, seconds=8)
    assert "process 1 of 2 was killed or does not run any more" in str(processes.end(1)[0])


def test_an_error_of_one_process_is_told_to_the_others(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    found = ends(processes, 2, faults.at_step, path, 1, 3, faults.raising, seconds=60)
    assert isinstance(found[1], ZeroDivisionError)
    assert isinstance(found[0], MissingProcess)
    assert "process 1 of 2 stopped: ZeroDivisionError: of one process alone" in str(found[0])


@pytest.mark.parametrize("ways", [(), ("parallel.shard=2",)], ids=["ddp", "fsdp"])
def test_a_batch_that_is_not_finite_in_one_process_is_skipped_by_all(
    processes: Pool, tmp_path: Path, ways: tuple[str, ...]
) -> None:
    path = recipe(tmp_path / "run")
    changes = ("training.non_finite=skip", *ways)
    found = ends(processes, 2, faults.not_finite, path, 1, changes, seconds=60)
    assert [how for how, _ in found] == ["finished"] * 2
    rows = metrics(path)
    assert [row["step"] for row in rows if row.get("skipped")] == [3]
    assert [row["step"] for row in rows if row["loss"] is not None] == [1, 2, *range(4, 10)]


def test_a_loss_that_is_not_finite_names_its_process(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "run")
    found = ends(processes, 2, faults.not_finite, path, 1, seconds=60)
    for error in found:
        assert isinstance(error, NonFiniteError)
        assert "step 3, arm 'wuneng', process 1 of 2: the loss is nan" in str(error)
