"""The Slurm scripts, with commands of Slurm's that only note what they were asked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from tests.cli.commands import outcome

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FAKES = {
    "srun": 'printf "%s\\n" "$@" > srun.txt; [ -e hold ] && exec sleep 60; exit 3',
    "scontrol": 'case "$1" in show) echo node-a; echo node-b;; *) echo "$@" > requeue.txt;; esac',
}
TINY = """\
model: {hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 1}
arms: [wuneng]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2}]}
training: {steps: 1, sequence_length: 16, batch_size: 2}
evaluation: {length_multiples: [1], examples: 4}
device: cpu
"""
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_ARRAY_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "4",
    "SLURM_JOB_NODELIST": "node-[a-b]",
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        file = tmp_path / "bin" / name
        file.write_text(f"#!/bin/bash\n{text}\n")
        file.chmod(0o755)
    return tmp_path


def script(place: Path, name: str, *arguments: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(place / "bin"), os.environ["PATH"]])
    command = ["bash", str(RECIPES / f"slurm-{name}.sh"), *arguments]
    return subprocess.Popen(command, cwd=place, env={**os.environ, **SLURM, "PATH": path})


def asked(place: Path) -> list[str]:
    return (place / "srun.txt").read_text().splitlines()


def test_several_machines_train_an_arm_together(place: Path) -> None:
    recipe = str(RECIPES / "fineweb-400m.yaml")
    assert script(place, "nodes", recipe, "--no-verify").wait() == 3
    launcher, *told = asked(place)
    assert launcher == "torchrun"
    found = parse_args(told)
    assert (found.nnodes, found.nproc_per_node, found.rdzv_endpoint) == ("2", "4", "node-a:29500")
    assert (found.module, found.training_script) == (True, "wuneng_cli")
    command, *rest = found.training_script_args
    assert rest[:2] == [recipe, "--no-verify"]
    assert rest[2:] == ["--out", "runs/slurm-7"]
    code, _, err = outcome(command, *rest, "--dry-run", "--no-measure")
    assert (code, err) == (0, "")
    assert not (place / "requeue.txt").exists(), "what fails by itself would fail again"


def test_a_job_that_is_stopped_is_queued_again_unless_it_is_done(place: Path) -> None:
    (place / "hold").touch()
    for done in (False, True):
        process = script(place, "nodes", "recipe.yaml")
        while not (place / "srun.txt").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
        assert (place / "requeue.txt").exists() == (not done)
        (place / "requeue.txt").unlink(missing_ok=True)
        (place / "srun.txt").unlink()
        (place / "runs" / "slurm-7").mkdir(parents=True, exist_ok=True)
        (place / "runs" / "slurm-7" / "results.json").touch()


def test_machines_of_an_array_work_on_one_run(place: Path) -> None:
    recipe = str(RECIPES / "fineweb-400m.yaml")
    assert script(place, "units", recipe).wait() == 3
    assert asked(place)[:3] == ["python", "-m", "wuneng_cli"]
    assert asked(place)[3:] == ["train", recipe, "--out", "runs/slurm-7"]


def test_tasks_of_srun_meet_in_a_directory_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would else do all of the work. In a directory that is named, they share it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    code, _, err = outcome("train", "tiny.yaml", "--quiet")
    assert code == 2
    assert "SLURM_STEP_NUM_TASKS is 4: expected --out" in err
    assert not (tmp_path / "runs").exists()
    code, _, err = outcome("train", "tiny.yaml", "--quiet", "--out", "shared")
    assert code == 0, err
    assert outcome("train", "tiny.yaml", "--quiet", "--resume", "shared")[0] == 0
    for what in ("training.steps=1,2", "study={primary: recall/loss, seeds: 2}"):
        place = ("--out", what[:5])
        code, _, err = outcome("train", "tiny.yaml", "--quiet", *place, "--set", what)
        assert code == 0, err
    assert outcome("report", "shared")[0] == 0, "tasks may do different work"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert outcome("train", "tiny.yaml", "--quiet")[0] == 0
