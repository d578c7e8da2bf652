"""What the shipped recipes plan: every arm matched, tuned alike, of the size that they promise."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from math import prod
from pathlib import Path

import pytest

from tests.cli.commands import outcome
from wuneng.recipe import load_recipe
from wuneng.statistics.scaling import Point, fit_scaling

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECIPES_OF_ONE_RUN = [
    *("quickstart", "python-bytes", "reasoning"),
    *("fineweb-130m", "fineweb-400m", "fineweb-1b5"),
]
run = partial(outcome, "train")


@pytest.mark.parametrize("name", RECIPES_OF_ONE_RUN)
def test_shipped_recipes_can_be_planned(name: str) -> None:
    path = str(RECIPES / f"{name}.yaml")
    code, out, err = run(path, "--dry-run", "--json", "--no-measure")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    recipe = load_recipe(Path(path))
    assert planned["steps"] == recipe.training.total_steps
    assert planned["tokens_per_step"] == recipe.training.tokens_per_step
    assert planned["tokens"] == planned["steps"] * planned["tokens_per_step"]
    assert list(planned["arms"]) == list(recipe.arms)
    sizes = [arm["parameters"] for arm in planned["arms"].values()]
    assert max(sizes) <= 1.01 * min(sizes), "the baselines are not matched"
    for arm in planned["arms"].values():
        assert sum(arm["parts"].values()) == arm["parameters"]
        total = arm["memory"].pop("total")
        assert total == sum(arm["memory"].values()) > 16 * arm["parameters"]
        kept = recipe.training.keep_checkpoints  # of weights and two moments, beside the model
        kept += recipe.training.schedule == "wsd"  # the one from before the decay
        assert arm["disk_bytes"] == 4 * arm["parameters"] * (1 + 3 * kept)
        assert (arm["seconds"], arm["not_measured"]) == (None, "--no-measure")


@pytest.mark.parametrize(
    ("name", "shows"),
    [
        ("study-bytes", 0.03),
        ("study-muon", 0.04),
        ("study-kinds", 0.02),
        ("study-start", 0.02),
        ("study-gate", 0.02),
        ("study-gate-form", 0.02),
        ("study-controls", 0.02),
        ("study-reasoning", 0.3),
        ("study-fineweb", 0.02),
    ],
)
def test_shipped_studies_can_be_planned(name: str, shows: float) -> None:
    """Every arm is tuned as often as any other, of the same size at each rung, and what the seeds
    can show is said: less than what the arms were apart when it was made."""
    path = RECIPES / f"{name}.yaml"
    code, out, err = run(str(path), "--dry-run", "--json", "--no-measure")
    assert (code, err) == (0, "")
    planned, recipe = json.loads(out), load_recipe(path)
    assert recipe.study is not None
    grid = [len(values) for values in recipe.study.tune.values()]
    wanted = {"tune": prod(grid) * recipe.study.tuning_seeds, "compare": recipe.study.seeds}
    rungs = {row["place"] for row in planned["runs"]}
    ladder = recipe.study.ladder
    assert len(rungs) == (len(ladder.sizes) * len(ladder.tokens_per_parameter) if ladder else 1)
    for rung in rungs:
        rows = [row for row in planned["runs"] if row["place"] == rung]
        assert {(row["stage"], row["arm"]) for row in rows} == set(product(wanted, recipe.arms))
        assert all(row["runs"] == wanted[row["stage"]] for row in rows)
        sizes = [row["parameters"] for row in rows]
        assert max(sizes) <= 1.01 * min(sizes), "the arms are not matched"
    assert 0 < planned["plan"]["minimum_detectable_effect"] < shows


def test_sizes_and_tokens_can_be_told_apart_in_the_large_study() -> None:
    _, out, _ = run(str(RECIPES / "study-fineweb.yaml"), "--dry-run", "--json", "--no-measure")
    rungs = json.loads(out)["plan"]["rungs"]
    sizes = [(rung["parameters"]["wuneng"], rung["tokens"]) for rung in rungs]
    points = [Point(0, n, d, 0.5 + 400 * n**-0.15 * d**-0.2) for n, d in sizes]
    fitted = fit_scaling(points)
    assert fitted is not None
    assert fitted.alpha == pytest.approx(0.15, rel=0.1)
    assert fitted.beta == pytest.approx(0.2, rel=0.1)
    assert fitted.offset == pytest.approx(0.5, rel=0.1)


def test_a_sweep_s_places_are_every_combination() -> None:
    path = RECIPES / "recall-grid.yaml"
    recipe = load_recipe(path)
    code, out, err = run(str(path), "--dry-run", "--json", "--no-measure")
    assert (code, err) == (0, "")
    rows = json.loads(out)["runs"]
    wanted = prod(len(values) for values in recipe.sweep.values()) * len(recipe.arms)
    assert sum(row["runs"] for row in rows) == wanted == 48
    for place in {row["place"] for row in rows}:
        held = {row["arm"]: row["parameters"] for row in rows if row["place"] == place}
        assert max(held.values()) <= 1.02 * min(held.values()), f"{place}: arms are not matched"


def test_the_large_recipe_keeps_its_promises() -> None:
    _, out, _ = run(str(RECIPES / "fineweb-130m.yaml"), "--dry-run", "--json", "--no-measure")
    arm = json.loads(out)["arms"]["wuneng"]
    assert 120e6 < arm["parameters"] < 140e6
    assert 0 < arm["added_percent"] <= 5


@pytest.mark.parametrize(("name", "millions"), [("fineweb-400m", 400), ("fineweb-1b5", 1500)])
def test_the_larger_recipes_keep_their_promises(name: str, millions: int) -> None:
    """Of about that size, twenty tokens for each parameter, and as computed on one GPU of 80 GB as
    well as on eight."""
    path = str(RECIPES / f"{name}.yaml")
    for processes in ("1", "8"):
        arguments = ("--dry-run", "--json", "--no-measure", "--processes", processes)
        code, out, err = run(path, *arguments, "--roof", "H100")
        assert (code, err) == (0, "")
        planned = json.loads(out)
        arm = planned["arms"]["wuneng"]
        assert arm["parameters"] == pytest.approx(millions * 1e6, rel=0.1)
        assert 0 < arm["added_percent"] <= 5
        assert planned["tokens"] == pytest.approx(20 * arm["parameters"], rel=0.1)
        assert arm["per_device"]["fits"] is True
        assert arm["per_device"]["roof"] == "data sheet of H100"
        floor = arm["training_flops"] / (int(processes) * 989e12)
        assert arm["per_device"]["seconds"] == pytest.approx(floor)
