"""Arms that train next to each other, each in a process of its own."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.train.small_run import recipe, train
from tests.train.test_display import progress
from tests.train.test_kill import command, outcome, wait_for_lines
from tests.train.tiny import Watcher
from wuneng.errors import InputError, NonFiniteError
from wuneng.records import ArmDirectory, read_json, read_jsonl
from wuneng.records.claimant import Claimant
from wuneng.train import Interrupted, Workers, run
from wuneng.train.display import PanelDisplay, PlainDisplay
from wuneng.train.failures import UnitsFailed
from wuneng.train.opening import settled
from wuneng.train.side_by_side import SideBySide
from wuneng.train.unit_group import GroupProcess, UnitGroup
from wuneng.train.unit_process import Ended, UnitJob
from wuneng.train.unit_queue import UnitQueue
from wuneng.train.units import Unit

DIVERGES = "arms={wuneng: , mha: , bad: {training: {learning_rate: 1.0e+30, clip: 0}}}"


def left_behind(run_directory: Path, *units: str) -> dict[str, Any]:
    """Everything of finished units that must not depend on what trained next to them."""
    found: dict[str, Any] = {}
    for unit in units:
        place = run_directory / unit
        found[f"{unit} weights"] = (place / "model" / "model.safetensors").read_bytes()
        found[f"{unit} quality"] = read_json(place / "result.json")["quality"]
        found[f"{unit} losses"] = [row["loss"] for row in read_jsonl(place / "metrics.jsonl")]
    return found


def test_a_unit_that_fails_stops_no_other_and_bits_are_those_of_training_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "turn").mkdir()
    with pytest.raises(UnitsFailed, match=r"1 of 3 failed, the others are finished:\n  bad \(seed"):
        train(tmp_path / "turn", DIVERGES)
    watcher = Watcher()
    given = recipe(tmp_path, DIVERGES)
    with pytest.raises(UnitsFailed) as failed:
        run(given, display=watcher, runs_root=tmp_path / "runs", workers=Workers(2))
    [failure] = failed.value.failures
    assert failure.unit == "bad (seed 0)"
    assert failure.reason.startswith("step 2, arm 'bad': the ")
    assert failure.diverged
    assert failed.value.exit_code == 1
    directory = tmp_path / "runs" / "small"
    assert f"wuneng train {directory / 'recipe.yaml'} --resume {directory}" in str(failed.value)
    assert {p.unit for p in watcher.steps} >= {"wuneng (seed 0)", "mha (seed 0)"}
    assert watcher.running[1] == (("wuneng (seed 0)", "mha (seed 0)"), 0, 3)
    assert watcher.running[-1] == ((), 2, 3)
    alone = left_behind(tmp_path / "turn" / "runs" / "small", "wuneng", "mha")
    assert left_behind(directory, "wuneng", "mha") == alone


def test_a_process_that_dies_is_named_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two are killed, as where memory runs out; the third trains."""
    exit_codes = iter([-signal.SIGKILL, 7, 0])
    ends = []

    def new_group(pool: SideBySide) -> UnitGroup:
        ours, theirs = multiprocessing.Pipe()
        code = next(exit_codes)
        if code == 0:
            theirs.send(Ended())
            ends.append(theirs)
        else:
            theirs.close()
        process = SimpleNamespace(exitcode=code, join=lambda: None, kill=lambda: None)
        pool._groups.append(UnitGroup(0, [GroupProcess(process, ours)]))  # type: ignore[arg-type]
        return pool._groups[-1]

    monkeypatch.setattr(SideBySide, "_new_group", new_group)
    watcher, unit = Watcher(), Unit("mha", 0)
    job = UnitJob(tmp_path, unit, "cpu", True, None, False, nullcontext)
    units = [(name, ArmDirectory(tmp_path / name), job) for name in "abc"]
    queue = UnitQueue(units, Claimant(), watcher.note)
    failures = SideBySide(watcher, ["cpu"]).train(queue)
    assert [failure.unit for failure in failures] == ["a", "b"]
    assert "ended by SIGKILL, as the system does where memory runs out" in failures[0].reason
    assert "ended with exit code 7" in failures[1].reason
    assert watcher.running[-1] == ((), 1, 3)
    assert not ends[0].closed


def test_a_single_arm_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"step 2, arm 'bad': the .*(nan|not finite)"):
        train(tmp_path, "arms={bad: {training: {learning_rate: 1.0e+30, clip: 0}}}")


def test_one_ctrl_c_stops_and_saves_all(tmp_path: Path) -> None:
    changes = ("training.steps=2k", "training.checkpoint_every=1k", "seed=[0,1]")
    asked: list[Any] = []

    def interrupt(progress: Any) -> None:
        if len({p.unit for p in watcher.steps}) == 2 and not asked:
            asked.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    watcher = Watcher(interrupt)
    given = recipe(tmp_path, *changes)
    with pytest.raises(Interrupted, match="0 of 4 finished, what was begun is saved") as stopped:
        run(given, display=watcher, runs_root=tmp_path / "runs", workers=Workers(2))
    assert stopped.value.exit_code == 130
    assert not multiprocessing.active_children()
    [warning] = watcher.warnings
    assert warning.startswith("SIGINT: finishing this step and saving")
    saved = {
        unit: max(
            int(step.name.removeprefix("step-"))
            for step in (tmp_path / "runs" / "small" / unit / "checkpoints").iterdir()
        )
        for unit in ("wuneng/seed-0", "mha/seed-0")
    }
    assert all(0 < step < 2048 for step in saved.values()), saved


@pytest.mark.slow
def test_processes_whose_parent_was_killed_save_and_end(tmp_path: Path) -> None:
    """Then the same command goes on, in turn, to the end of a run that nothing disturbed."""
    with command(tmp_path) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    undisturbed = outcome(tmp_path)
    place = tmp_path / "killed"
    place.mkdir()
    with command(place, "--jobs", "2") as process:
        wait_for_lines(place, 20, lambda: process.poll() is None)
        process.kill()
    with command(place) as process:
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert outcome(place) == undisturbed


def test_the_threads_are_divided_among_the_jobs(tmp_path: Path) -> None:
    given = recipe(tmp_path, "training.num_threads=null")
    assert settled(given, 1).training.num_threads == torch.get_num_threads()
    assert settled(given, 10**6).training.num_threads == 1
    stated = recipe(tmp_path, "training.num_threads=3")
    assert settled(stated, 2).training.num_threads == 3, "what the recipe says holds for each"


def test_there_is_one_job_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    assert Workers().devices("cuda") == ["cuda:0", "cuda:1", "cuda:2"]
    assert Workers(4).devices("cuda") == ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]
    assert Workers().devices("cuda:1") == ["cuda:1"]
    assert Workers(1).devices("cuda") == ["cuda"]
    assert Workers(together=3).devices("cuda") == ["cuda"], "each of the group takes its own"
    with pytest.raises(InputError, match=r"--jobs 2 --processes 2: 4 processes need a GPU each"):
        Workers(2, together=2).devices("cuda")
    assert Workers(2, together=2).devices("cpu") == ["cpu", "cpu"]
    assert Workers().devices("cpu") == ["cpu"]
    assert Workers(2).devices("cpu") == ["cpu", "cpu"]


@pytest.mark.parametrize("width", [60, 120])
def test_one_panel_shows_all_that_train(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, color_system=None)
    panel = PanelDisplay(console)
    panel.side_by_side(["mha (seed 0)", "mha (seed 1)"], 3, 10)
    panel.stepped(progress(unit="mha (seed 1)", validation={"text/loss": 1.25}))
    console.print(panel._render())
    panel.close()
    shown = stream.getvalue()
    assert "3 of 10 finished, 2 in training" in shown
    waiting = next(line for line in shown.splitlines() if "mha (seed 0)" in line)
    assert "starting" in waiting
    row = next(line for line in shown.splitlines() if "10 / 400" in line)
    assert "loss 3.2100" in row
    assert "1:02:05" in row
    assert ("text/loss 1.2500" in row) == (width == 120)


def test_plain_lines_name_the_unit() -> None:
    stream = io.StringIO()
    display = PlainDisplay(stream)
    display.side_by_side(["mha (seed 0)"], 1, 2)
    display.stepped(progress(unit="mha (seed 0)"))
    assert stream.getvalue().splitlines()[0] == "1 of 2 finished; training mha (seed 0)"
    assert stream.getvalue().splitlines()[1].startswith("mha (seed 0)  step 10/400  ")
