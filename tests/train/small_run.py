"""A run of two small arms in seconds, and one that is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.train.tiny import Watcher
from wuneng.recipe import Recipe, load_recipe
from wuneng.train import Results, run

RECIPE: dict[str, Any] = {
    "name": "small",
    "model": {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "cross_head": "gated",
    },
    "arms": ["wuneng", "mha"],
    "data": {"kind": "synthetic", "tasks": [{"task": "state_tracking", "group": "parity"}]},
    "training": {
        "steps": 6,
        "sequence_length": 16,
        "batch_size": 4,
        "warmup_steps": 2,
        "log_every": 1,
        "validate_every": 3,
        "checkpoint_every": 2,
        "num_threads": 1,
    },
    "evaluation": {"length_multiples": [1, 2], "examples": 8},
    "device": "cpu",
}


def recipe(place: Path, *changes: str) -> Recipe:
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return load_recipe(path, changes)


def train(place: Path, *changes: str, **options: Any) -> tuple[Results, Watcher]:
    watcher = Watcher()
    results = run(recipe(place, *changes), display=watcher, runs_root=place / "runs", **options)
    return results, watcher


class Stopped(BaseException):
    pass


def stop_in(arm: str, step: int) -> Watcher:
    def at_step(progress: Any) -> None:
        if (progress.arm, progress.step) == (arm, step):
            raise Stopped

    return Watcher(at_step)
