"""Every combination of some values, trained and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.small_run import RECIPE
from tests.train.tiny import Watcher
from wuneng.errors import InputError, ModelError
from wuneng.recipe import load_recipe, read_written
from wuneng.records import find_model, read_json, verify
from wuneng.study import run_sweep
from wuneng.study.outcomes import best_first, edge_paths
from wuneng.train import run

STEPS = ("training.steps=3", "training.validate_every=0")


def sweep(place: Path, *changes: str, **options: Any) -> Any:
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    written = read_written(path, [*STEPS, *changes])
    return run_sweep(written, display=Watcher(), runs_root=place / "runs", **options)


def test_every_arm_is_trained_at_every_point(tmp_path: Path) -> None:
    found = sweep(tmp_path, "training.learning_rate=1e-3,4e-3,1e+30", "training.clip=0,1")
    record = found.record
    assert [point["point"] for point in record["points"]] == [
        f"learning_rate-{rate}_clip-{clip}"
        for rate in ("0.001", "0.004", "1e30")
        for clip in (0, 1)
    ]
    for point in record["points"]:
        assert list(point["arms"]) == ["wuneng", "mha"]
    # A rate that is too high is a result, and stops nothing.
    assert {unit.partition(":")[0] for unit in record["failed"]} >= {"learning_rate-1e30_clip-0"}
    assert record["points"][4]["arms"]["mha"] is None
    for arm, best in record["best"].items():
        losses = {
            point["point"]: point["arms"][arm]["quality"]["parity/loss"]
            for point in record["points"]
            if point["arms"][arm] is not None
        }
        assert best["point"] == min(losses, key=losses.__getitem__)
        assert best["figure"] == losses[best["point"]]
    cells = [str(cell) for row in found.table.rows for cell in row]
    assert cells.count("diverged") == len(record["failed"])
    assert cells.count("best") == 2
    assert "parity/loss" in [column.heading for column in found.table.columns]
    for arm, best in record["best"].items():
        assert f"{arm} {best['figure']:.4f} at training.learning_rate=" in found.sentence
        model = find_model(found.directory, arm=arm)
        assert model == found.directory / best["point"] / arm / "model"
    verify(found.directory)
    assert read_json(found.directory / "results.json") == record


def test_a_point_is_a_run_like_any_other(tmp_path: Path) -> None:
    found = sweep(tmp_path, "training.learning_rate=1e-3,2e-3", "arms=[mha]")
    point = found.directory / "learning_rate-0.002"
    alone = run(
        load_recipe(point / "recipe.yaml"),
        out=tmp_path / "alone",
        display=Watcher(),
        runs_root=tmp_path / "runs",
    )
    weights = Path("mha") / "model" / "model.safetensors"
    assert (point / weights).read_bytes() == (alone.directory / weights).read_bytes()
    verify(point)
    assert load_recipe(point / "recipe.yaml").training.learning_rate == 0.002
    with pytest.raises(InputError, match="states several runs"):
        run(load_recipe(found.directory / "recipe.yaml"), display=Watcher())


def test_the_same_command_goes_on_where_a_sweep_was_stopped(tmp_path: Path) -> None:
    class Stopped(BaseException):
        pass

    def at_step(progress: Any) -> None:
        if progress.arm == "mha":
            raise Stopped

    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    written = read_written(path, [*STEPS, "training.learning_rate=1e-3,2e-3"])
    with pytest.raises(Stopped):
        run_sweep(written, display=Watcher(at_step), runs_root=tmp_path / "runs")
    parent = tmp_path / "runs" / "small"
    with pytest.raises(ModelError, match=r"is not finished, .*small/learning_rate-0\.001"):
        find_model(parent)
    watcher = Watcher()
    found = run_sweep(written, display=watcher, runs_root=tmp_path / "runs")
    assert found.directory == parent
    trained = [(progress.arm, progress.learning_rate) for progress in watcher.steps]
    assert len(trained) == 9, "the first arm of the first point was finished before"
    other = read_written(path, [*STEPS, "training.learning_rate=1e-3,3e-3"])
    with pytest.raises(InputError, match=r"another recipe: sweep\.training\.learning_rate is"):
        run_sweep(other, display=Watcher(), resume=str(parent), runs_root=tmp_path / "runs")


def test_a_best_value_at_the_edge_is_warned_of() -> None:
    grid = {"training.learning_rate": [1e-3, 4e-3, 2e-3], "model.state_kind": ["rwkv7", "kda"]}
    chosen = {"training.learning_rate": 4e-3, "model.state_kind": "kda"}
    assert edge_paths(grid, chosen) == {"training.learning_rate": (4e-3, 2e-3)}
    assert not edge_paths(grid, {**chosen, "training.learning_rate": 2e-3})
    assert best_first([2.0, float("inf"), 1.0]) == [2, 0, 1]
    assert best_first([2.0, float("inf"), 3.0], higher=True) == [2, 0, 1]
