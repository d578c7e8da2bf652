"""Real processes, really killed: the resumed run must equal the undisturbed one to the bit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train import killable
from tests.train.tiny import UNTIMED
from wuneng.records import read_json, read_jsonl

REPOSITORY = Path(__file__).resolve().parents[2]
ARMS = ("wuneng", "mha")
RECIPE: dict[str, Any] = {
    "name": "killed",
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "attention_dropout": 0.1,  # draws from torch's generator at every step
        "state_a_max": 2.0,
    },
    "arms": list(ARMS),
    "data": {
        "kind": "synthetic",
        "tasks": [
            {"task": "recall", "pairs": 4},
            {"task": "state_tracking", "group": "parity", "curriculum": True},
        ],
    },
    "training": {
        "steps": 60,
        "sequence_length": 32,
        "batch_size": 8,
        "warmup_steps": 5,
        "log_every": 1,
        "validate_every": 20,
        "checkpoint_every": 7,
        "num_threads": 1,
    },
    "evaluation": {"length_multiples": [1, 2], "examples": 16},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], BaseProcess]]:
    """Start training in a directory, in a process that has torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.train.killable"])
    started: list[BaseProcess] = []

    def start_in(place: Path) -> BaseProcess:
        recipe = write_recipe(place)
        process = context.Process(target=killable.train, args=(recipe, place / "runs"))
        process.start()
        started.append(process)
        return process

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path())  # the server itself must find our modules
        yield start_in
    for process in started:
        process.kill()


@contextlib.contextmanager
def command(place: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """``wuneng train`` as a user starts it, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "wuneng_cli.main", "train", str(write_recipe(place)), *options],
        cwd=place,
        env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def python_path() -> str:
    return os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])


def write_recipe(place: Path) -> Path:
    path = place / "killed.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def lines_written(place: Path) -> int:
    """Of the arms' metrics together."""
    files = [place / "runs" / "killed" / arm / "metrics.jsonl" for arm in ARMS]
    return sum(file.read_bytes().count(b"\n") for file in files if file.exists())


def wait_for_lines(place: Path, lines: int, alive: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while lines_written(place) < lines:
        assert alive(), "the process ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def outcome(place: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on how it got there."""
    [run] = [path for path in (place / "runs").iterdir() if not path.is_symlink()]
    parts: dict[str, Any] = {}
    for arm in ARMS:
        parts[f"{arm} metrics"] = [
            {k: v for k, v in row.items() if k not in UNTIMED}
            for row in read_jsonl(run / arm / "metrics.jsonl")
        ]
        parts[f"{arm} weights"] = (run / arm / "model" / "model.safetensors").read_bytes()
        parts[f"{arm} quality"] = read_json(run / "results.json")["arms"][arm]["quality"]
    return parts


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, start: Callable[[Path], BaseProcess]
) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("undisturbed")
    process = start(place)
    process.join()
    assert process.exitcode == 0
    assert lines_written(place) == 120
    return outcome(place)


def test_sigkill_at_random_moments_changes_nothing(
    tmp_path: Path, undisturbed: dict[str, Any], start: Callable[[Path], BaseProcess]
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    moments = random.Random(seed)
    for lines in sorted(moments.sample(range(5, 115), 5)):
        process = start(tmp_path)
        wait_for_lines(tmp_path, lines, process.is_alive)
        time.sleep(moments.random() * 0.02)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    process = start(tmp_path)
    process.join()
    assert process.exitcode == 0
    resumed = outcome(tmp_path)
    for name, expected in undisturbed.items():
        assert resumed[name] == expected, f"{name} differs (moments of seed {seed})"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "lines", "arm"), [(signal.SIGTERM, 23, "wuneng"), (signal.SIGINT, 71, "mha")]
)
def test_the_command_saves_on_signals_and_says_how_to_go_on(
    tmp_path: Path, undisturbed: dict[str, Any], number: signal.Signals, lines: int, arm: str
) -> None:
    with command(tmp_path) as process:
        wait_for_lines(tmp_path, lines, lambda: process.poll() is None)
        process.send_signal(number)
        output, errors = process.communicate(timeout=150)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert f"{number.name}: finishing this step" in output + errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"error: stopped by a signal; arm '{arm}', seed 0, is saved at step ")
    assert "wuneng train runs/killed/recipe.yaml --resume runs/killed" in last
    step = last.split("at step ")[1].split()[0]
    assert (tmp_path / "runs" / "killed" / arm / "checkpoints" / f"step-{step}").is_dir()
    with command(tmp_path) as process:
        output, errors = process.communicate(timeout=150)
    assert process.returncode == 0, errors
    assert "parity: " in output
    assert outcome(tmp_path) == undisturbed
