"""What a process of its own runs in the tests that kill it."""

from __future__ import annotations

from pathlib import Path

from wuneng.recipe import load_recipe
from wuneng.train import make_display, run


def train(recipe: Path, runs_root: Path) -> None:
    """Train ``recipe`` or continue training it, under ``runs_root``."""
    run(load_recipe(recipe), runs_root=runs_root, display=make_display(quiet=True))
