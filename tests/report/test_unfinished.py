"""`wuneng report` of a run that trains at this moment: how far it is, and nothing disturbed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cli.commands import answer as call
from tests.train.small_run import recipe
from tests.train.small_run import train as train_recipe
from tests.train.tiny import UNTIMED, Watcher
from wuneng.records import read_jsonl
from wuneng.train import run
from wuneng.train.display import Progress


def computed(directory: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in UNTIMED}
        for arm in ("wuneng", "mha")
        for row in read_jsonl(directory / arm / "metrics.jsonl")
    ]


def test_a_report_while_the_run_trains(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    runs = tmp_path / "watched" / "runs"

    def at_step(progress: Progress) -> None:
        if (progress.arm, progress.step) == ("mha", 4):
            reports.append(call("report", str(runs / "small")))
            assert (runs / "small" / "curves.png").is_file()

    (tmp_path / "watched").mkdir()
    (tmp_path / "alone").mkdir()
    watched = run(recipe(tmp_path / "watched"), display=Watcher(at_step), runs_root=runs)
    [report] = reports
    [part] = report["parts"]
    text = " ".join(line for section in part["sections"] for line in section["text"])
    assert "The run is not finished" in text
    assert "wuneng at step 6 of 6, mha at step 3 of 6" in text
    alone, _ = train_recipe(tmp_path / "alone")
    assert computed(watched.directory) == computed(alone.directory)
    for arm in ("wuneng", "mha"):
        one, two = (
            d / arm / "model" / "model.safetensors" for d in (watched.directory, alone.directory)
        )
        assert one.read_bytes() == two.read_bytes()
