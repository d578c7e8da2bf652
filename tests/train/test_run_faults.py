"""Recipes, records and disks at fault: found early, and nothing finished is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.train.small_run import recipe, train
from tests.train.tiny import Watcher
from wuneng.errors import DamagedError, DiskError, RecipeError
from wuneng.recipe import dump_recipe, load_recipe
from wuneng.records import RunDirectory
from wuneng.train import run


def test_an_arm_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    results, watcher = train(
        tmp_path, "arms.mha.training.learning_rate=0.5", "training.schedule=constant"
    )
    rates = {p.arm: p.learning_rate for p in watcher.steps if p.step == 6}
    assert rates == {"wuneng": 0.001, "mha": 0.5}
    assert results.record["arms"]["mha"]["learning_rate"] == 0.5


def test_a_later_arms_fault_is_found_before_the_first_trains(tmp_path: Path) -> None:
    arms = (
        "arms={wuneng: , wide: {model: {num_state_heads: 0, hidden_size: 256}, match: parameters}}"
    )
    with pytest.raises(RecipeError, match=r"arms\.wide: "):
        train(tmp_path, arms)
    assert not list((tmp_path / "runs").iterdir())


def test_a_recipe_that_the_user_wrote_survives_its_faults(tmp_path: Path) -> None:
    place = tmp_path / "exp"
    place.mkdir()
    written = place / "recipe.yaml"
    text = dump_recipe(recipe(tmp_path, "arms.mha.model.hidden_size=512"))
    written.write_text(text)
    with pytest.raises(RecipeError, match=r"arms\.mha: .*feed-forward width"):
        run(load_recipe(written), out=place, display=Watcher(), runs_root=tmp_path / "runs")
    assert written.read_text() == text


def test_an_altered_recipe_of_a_finished_run_is_not_believed(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "arms=[mha]")
    stored = results.directory / "recipe.yaml"
    sealed = (results.directory / "checksums.json").read_bytes()
    stored.write_text(stored.read_text().replace("learning_rate: 0.001", "learning_rate: 0.01"))
    altered = load_recipe(stored)
    assert altered.training.learning_rate == 0.01
    with pytest.raises(DamagedError, match=r"recipe\.yaml"):
        run(altered, out=results.directory, display=Watcher(), runs_root=tmp_path / "runs")
    assert (results.directory / "checksums.json").read_bytes() == sealed


def test_an_arm_that_cannot_be_matched_is_the_recipes_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"arms\.mha: .*feed-forward width"):
        train(tmp_path, "arms.mha.model.hidden_size=512")


def test_a_disk_that_fills_between_arms_keeps_the_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    results = tmp_path / "runs" / "small" / "wuneng" / "result.json"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=10 if results.exists() else 10**9)
    )
    with pytest.raises(DiskError, match=r"mha/checkpoints/step-2: the disk is full"):
        train(tmp_path)
    monkeypatch.undo()
    continued, watcher = train(tmp_path)
    assert {p.arm for p in watcher.steps} == {"mha"}
    assert continued.directory == RunDirectory(tmp_path / "runs" / "small").path
