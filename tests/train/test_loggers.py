"""TensorBoard, W&B and CSV get the same figures under the same names, also after a resume."""

from __future__ import annotations

import csv
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.train.test_loop import train
from tests.train.tiny import Watcher, tiny_job, tiny_training
from wuneng.errors import InputError
from wuneng.records import read_jsonl
from wuneng.train import loggers
from wuneng.train.arm_job import ArmJob
from wuneng.train.csv_log import CsvLogger
from wuneng.train.display import Progress
from wuneng.train.flat_rows import flat, numbers
from wuneng.train.loggers import open_loggers
from wuneng.train.signals import Interrupted

ROW = {
    "arm": "mha",
    "step": 3,
    "loss": 1.5,
    "skipped": True,
    "validation": {"recall/loss": 2.0},
    "grad_norms": {"attention": 0.5},
}


def logged_job(place: Path, *names: str) -> ArmJob:
    return tiny_job(place, tiny_training(), loggers=open_loggers(names, place, "run/tiny"))


def stopped_and_resumed(place: Path, *names: str) -> ArmJob:
    """A run that was killed at step 8, two steps after a checkpoint, and went on."""

    class Killed(BaseException):
        pass

    def at_step(progress: Progress) -> None:
        if progress.step == 8:
            raise Killed

    first = logged_job(place, *names)
    with pytest.raises(Killed):
        train(first, Watcher(at_step))
    for logger in first.loggers:
        logger.close()
    second = logged_job(place, *names)
    train(second)
    for logger in second.loggers:
        logger.close()
    return second


def read_csv(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_nested_figures_have_flat_names() -> None:
    assert numbers(ROW) == {
        "loss": 1.5,
        "skipped": True,
        "validation/recall/loss": 2.0,
        "grad_norms/attention": 0.5,
    }
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a/b/c": 1, "d": 2}


def test_csv_after_a_resume_has_every_step_once(tmp_path: Path) -> None:
    job = stopped_and_resumed(tmp_path, "csv")
    table, lines = read_csv(tmp_path / "metrics.csv"), read_jsonl(job.directory.metrics)
    assert [int(row["step"]) for row in table] == list(range(1, 13))
    for row, line in zip(table, lines, strict=True):
        whole = flat(line)
        assert {name for name, cell in row.items() if cell} == set(whole)
        assert {name: float(row[name]) for name in numbers(line)} == numbers(line)


def test_a_column_that_comes_later(tmp_path: Path) -> None:
    """Validation has no column before step 4, and an empty cell in the lines before."""
    job = logged_job(tmp_path, "csv")
    seen: list[list[dict[str, str]]] = []
    train(job, Watcher(lambda progress: seen.append(read_csv(tmp_path / "metrics.csv"))))
    assert "validation/count/loss" not in seen[3][0]
    assert seen[4][0]["validation/count/loss"] == ""
    assert float(seen[4][3]["validation/count/loss"]) > 0
    assert [len(table) for table in seen] == list(range(12))


def test_a_loss_that_is_none_has_an_empty_cell(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.begin([])
    logger.log({"step": 1, "loss": float("nan"), "arm": 'a,"b"'})
    assert read_csv(tmp_path / "metrics.csv") == [{"step": "1", "loss": "", "arm": 'a,"b"'}]


def test_csv_needs_no_package() -> None:
    loggers.check_installed(["csv"])


def test_tensorboard_reads_back_what_was_logged(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    job = stopped_and_resumed(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    lines = read_jsonl(job.directory.metrics)
    assert set(found.Tags()["scalars"]) == {name for line in lines for name in numbers(line)}
    losses = [(event.step, pytest.approx(event.value)) for event in found.Scalars("loss")]
    assert losses == [(line["step"], line["loss"]) for line in lines]


def test_wandb_offline_keeps_what_was_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    job = logged_job(tmp_path, "wandb")
    train(job)
    for logger in job.loggers:
        logger.close()
    [written] = tmp_path.glob("wandb/offline-run-*/*.wandb")
    wanted, patience = (b"validation/count/loss", b"grad_norm"), time.monotonic() + 60
    # A process of wandb's own writes it, and may still be at it when its finish() returns.
    while not all(name in written.read_bytes() for name in wanted):
        assert time.monotonic() < patience, f"{written.stat().st_size} bytes do not name {wanted}"
        time.sleep(0.2)


def test_wandb_gets_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, dict[str, Any]] = {}
    made = SimpleNamespace(
        log=lambda values, step: sent.setdefault(step, values), finish=lambda: None
    )
    monkeypatch.setattr(loggers, "check_installed", lambda names: None)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **named: made))
    job = stopped_and_resumed(tmp_path, "wandb")
    lines = read_jsonl(job.directory.metrics)
    assert list(sent) == [line["step"] for line in lines]
    assert [set(values) for values in sent.values()] == [set(numbers(line)) for line in lines]


def test_a_missing_package_is_named_before_training(tmp_path: Path) -> None:
    if loggers.importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    with pytest.raises(InputError, match="pip install wandb"):
        logged_job(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())


def test_a_signal_leaves_a_whole_table(tmp_path: Path) -> None:
    def at_step(progress: Progress) -> None:
        if progress.step == 5:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(logged_job(tmp_path, "csv"), Watcher(at_step))
    assert [row["step"] for row in read_csv(tmp_path / "metrics.csv")] == ["1", "2", "3", "4", "5"]
