"""`wuneng train --processes`, and the same under torchrun: one is seen, all end alike."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.small_run import RECIPE, train
from wuneng.errors import InputError
from wuneng.recipe import load_recipe
from wuneng.records import read_jsonl
from wuneng_cli.processes import start

ROOT = Path(__file__).resolve().parents[2]
CLI = [sys.executable, "-m", "wuneng_cli"]


def written(place: Path, **training: Any) -> Path:
    path = place / "small.yaml"
    changed = {**RECIPE, "arms": ["wuneng"], "training": {**RECIPE["training"], **training}}
    path.write_text(yaml.safe_dump(changed))
    return path


def started(command: list[str], place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def test_one_of_two_prints(tmp_path: Path) -> None:
    command = [*CLI, "train", str(written(tmp_path)), "--processes", "2", "--json"]
    code, out, err = ended(started(command, tmp_path))
    assert code == 0, err
    run = Path(json.loads(out)["directory"])
    assert "2 processes (DDP, replicate 2 x shard 1)" in err
    steps = [row["step"] for row in read_jsonl(tmp_path / run / "wuneng" / "metrics.jsonl")]
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "parallel.shard=3"], "parallel.shard: expected a divisor"),
        (["--set", "sweep={training.learning_rate: [1e-3, 2e-3]}"], "has sweep or study"),
    ],
)
def test_what_cannot_be_is_said_once_and_before(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    command = [*CLI, "train", str(written(tmp_path)), "--processes", "2", *arguments]
    code, out, err = ended(started(command, tmp_path))
    assert (code, out) == (2, "")
    assert err.count("error: ") == 1
    assert message in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.yaml"]


def test_two_groups_of_two_train_an_arm_each(tmp_path: Path) -> None:
    """To the losses of one process, up to rounding."""
    recipe = written(tmp_path)
    recipe.write_text(recipe.read_text().replace("- wuneng", "- wuneng\n- mha"))
    command = [*CLI, "train", str(recipe), "--processes", "2", "--jobs", "2", "--out", "run"]
    code, out, err = ended(started(command, tmp_path))
    assert code == 0, err
    assert out.count("2 processes (DDP, replicate 2 x shard 1)") == 2
    train(tmp_path)
    for arm in ("wuneng", "mha"):
        losses, alone = (
            [row["loss"] for row in read_jsonl(tmp_path / run / arm / "metrics.jsonl")]
            for run in ("run", "runs/small")
        )
        assert losses == pytest.approx(alone, rel=1e-5)
    assert not list(tmp_path.rglob(".claim-*"))


@pytest.mark.slow
def test_one_of_a_group_is_killed(tmp_path: Path) -> None:
    """Its arm ends there and is named, the other arm is finished, and the same command goes on.

    Both arms need the same kernels, which may have to be built first, and are far from their ends.
    """
    steps = 300
    recipe = written(tmp_path, steps=steps, checkpoint_every=10)
    recipe.write_text(recipe.read_text().replace("- wuneng", "- mha\n- mha-shift"))
    command = [*CLI, "train", str(recipe), "--processes", "2", "--jobs", "2", "--out", "run"]
    process = started(command, tmp_path)
    curves = [tmp_path / "run" / arm / "metrics.jsonl" for arm in ("mha", "mha-shift")]
    while not all(curve.exists() and len(read_jsonl(curve)) > 20 for curve in curves):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    kill_a_process_of(process.pid)
    code, _, err = ended(process)
    assert code == 1
    assert "process 1 of 2: its process was ended by SIGKILL" in err
    lengths = sorted(len(read_jsonl(curve)) for curve in curves)
    assert lengths[0] < lengths[1] == steps
    code, out, err = ended(started(command, tmp_path))
    assert code == 0, err[-2000:]
    assert "continuing after step" in out
    for curve in curves:
        assert [row["step"] for row in read_jsonl(curve)] == list(range(1, steps + 1))


def test_a_launcher_s_processes_start_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    with pytest.raises(InputError, match=r"--jobs 2: expected none under a launcher"):
        start(None, 2, load_recipe(written(tmp_path)), named=False)


def test_more_processes_than_rows_leave_nothing_behind(tmp_path: Path) -> None:
    """Found out by the processes, after the run was opened."""
    command = [*CLI, "train", str(written(tmp_path, batch_size=1)), "--processes", "2"]
    code, _, err = ended(started(command, tmp_path))
    assert code == 2
    assert err.count("error: training.batch_size: expected at least one sequence") == 1
    assert not (tmp_path / "runs" / "small").exists()


def test_ctrl_c_saves_in_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    long = [*CLI, "train", str(written(tmp_path, steps=4000, log_every=1)), "--processes", "2"]
    process = started(long, tmp_path)
    metrics = tmp_path / "runs" / "small" / "wuneng" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130
    assert err.count("is saved at step") == 1
    done = read_jsonl(metrics)[-1]["step"]
    checkpoints = metrics.parent / "checkpoints"
    assert f"step-{done}" in {path.name for path in checkpoints.iterdir()}


def kill_a_process_of(launcher: int) -> None:
    """One that trains: the last that the launcher started."""
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True, check=True
    )
    os.kill(max(map(int, children.stdout.split())), signal.SIGKILL)


@pytest.mark.slow
def test_torchrun_starts_all_again_after_one_was_killed(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    recipe = written(tmp_path, steps=60, checkpoint_every=10)
    command = [*torchrun, "--max-restarts", "1", "-m", "wuneng_cli", "train", str(recipe)]
    process = started([*command, "--resume", "never"], tmp_path)
    metrics = tmp_path / "runs" / "small" / "wuneng" / "metrics.jsonl"
    while not (metrics.exists() and len(read_jsonl(metrics)) > 20):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    kill_a_process_of(process.pid)
    code, out, err = ended(process)
    assert code == 0, err[-2000:]
    assert "continuing after step" in out
    assert [row["step"] for row in read_jsonl(metrics)] == list(range(1, 61))
    assert len(list((tmp_path / "runs").glob("small*"))) == 1
