"""An upgrade that is stopped goes on bit for bit, and one that is repeated says the same."""

from __future__ import annotations

import importlib.util
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_upgrade import RECIPE, checkpoint_of, train
from tests.train.tiny import Watcher
from wuneng.convert import ConvertedSources
from wuneng.recipe import load_recipe
from wuneng.train import Interrupted, Results, arm_run, run

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


ONE_ARM = "arms={wuneng: {}}"


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("arm", ["wuneng", "lora", "taught"])
def test_a_stopped_upgrade_continues_bit_for_bit(
    place: Path, finished: Results, tmp_path: Path, arm: str
) -> None:
    def at_step(progress: Any) -> None:
        if (progress.arm, progress.step) == (arm, 3):
            raise Stopped

    arms = {name: RECIPE["arms"][name] for name in {"wuneng": 0, arm: 0}}
    change = f"arms={json.dumps(arms)}"
    with pytest.raises(Stopped):
        train(place, tmp_path / "run", change, display=Watcher(at_step))
    _, watcher = train(place, tmp_path / "run", change)
    assert any("continuing after step 2" in note for note in watcher.notes)
    for file in ("model.safetensors", "optimizer.safetensors"):
        one = checkpoint_of(finished.directory, arm, file)
        two = checkpoint_of(tmp_path / "run", arm, file)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_resolved_recipe_repeats_the_run(place: Path, tmp_path: Path) -> None:
    first, _ = train(place, tmp_path / "first", ONE_ARM, "training.steps=2")
    again = load_recipe(first.directory / "recipe.yaml")
    second = run(again, tmp_path / "second", display=Watcher(), sources=ConvertedSources())
    quality = [r.record["arms"]["wuneng"]["quality"] for r in (first, second)]
    assert quality[0] == quality[1]


def test_scoring_the_source_can_be_stopped(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*inputs: Any, before_batch: Any, **options: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        before_batch()

    change = "arms={source: {model: {num_state_heads: 0}, train: none}}"
    with monkeypatch.context() as patch:
        patch.setattr(arm_run, "measure", interrupted)
        with pytest.raises(Interrupted, match="while arm 'source', seed 0, was scored"):
            train(place, tmp_path / "run", change, "training.learning_rates={}")
    results, _ = train(place, tmp_path / "run", change, "training.learning_rates={}")
    assert results.record["arms"]["source"]["steps"] == 0
