"""Several values for a field: which spellings mean a sweep, and what its points are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.small_run import RECIPE
from wuneng.errors import RecipeError
from wuneng.recipe import Recipe, dump_recipe, load_recipe, points_of, read_written


def write(place: Path, **fields: Any) -> Path:
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, **fields}))
    return path


def loaded(place: Path, *changes: str, **fields: Any) -> Recipe:
    return load_recipe(write(place, **fields), changes)


@pytest.mark.parametrize(
    ("change", "path", "values"),
    [
        ("training.learning_rate=1e-3,2e-3", "training.learning_rate", [0.001, 0.002]),
        ("training.tokens=1k, 2k", "training.tokens", ["1k", "2k"]),
        ("model.state_kind=rwkv7,kda", "model.state_kind", ["rwkv7", "kda"]),
        ("model.qk_norm=true,false", "model.qk_norm", [True, False]),
        ("arms.mha.training.clip=0,1", "arms.mha.training.clip", [0, 1]),
        ("data.tasks.0.weight=1,2", "data.tasks.0.weight", [1, 2]),
    ],
)
def test_commas_are_a_sweep_of_numbers_choices_and_truth_values(
    change: str, path: str, values: list[Any], tmp_path: Path
) -> None:
    changes = [change]
    if path == "training.tokens":
        changes.insert(0, "training.steps=null")
    assert loaded(tmp_path, *changes).sweep == {path: values}


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("description=one, two", "description", "one, two"),
        ("seed=[3,4]", "seed", [3, 4]),
        ("evaluation.length_multiples=[1,2]", "evaluation.length_multiples", [1, 2]),
        ("arms=[mha,wuneng]", "arms", None),
    ],
)
def test_text_and_lists_are_no_sweep(change: str, path: str, value: Any, tmp_path: Path) -> None:
    recipe = loaded(tmp_path, change)
    assert not recipe.sweep
    found: Any = recipe
    for key in path.split("."):
        found = getattr(found, key)
    assert value is None or found == value


def test_files_with_commas_stay_one_name(tmp_path: Path) -> None:
    path = write(tmp_path, data={"kind": "text", "train": "x"})
    recipe = load_recipe(path, ["data.train=a,b.txt"])
    assert recipe.data.kind == "text"
    assert recipe.data.train == ["a,b.txt"]


def test_the_last_word_about_a_field_holds(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, "training.clip=1,2", "training.clip=3")
    assert not recipe.sweep
    assert recipe.training.clip == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.learning_rate=1e-3,,2e-3"], "expected values between the commas"),
        (["training.learning_rate=1e-3,-1"], r"sweep: training.learning_rate=-1: .*above 0"),
        (["sweep={training.lerning_rate: [1]}"], r"lerning_rate.*Did you mean 'learning_rate'"),
        (["sweep={seed: [1, 2]}"], "sweep.seed: expected the path of a field that changes a run"),
        (["sweep={training.clip: 3}"], "sweep.training.clip: expected a list"),
        ([f"sweep={{training.clip: {list(range(1001))}}}"], "at most 1,000"),
        (["seed=0,1"], "seed: expected a whole number from 0, or a list"),
    ],
)
def test_bad_values_are_named(changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        loaded(tmp_path, *changes)


def test_points_are_all_combinations_with_readable_names() -> None:
    points = points_of({"training.learning_rate": [1e-3, 2e-3], "model.layers": ["a", "b c"]})
    assert [point.name for point in points] == [
        "learning_rate-0.001_layers-a",
        "learning_rate-0.001_layers-b-c",
        "learning_rate-0.002_layers-a",
        "learning_rate-0.002_layers-b-c",
    ]
    assert str(points[0]) == "training.learning_rate=0.001, model.layers=a"
    alike = points_of({"model.layers": ["a b", "a:b"]})
    assert len({point.name for point in alike}) == 2, "names tell points apart"
    longer = points_of({"model.layers": ["a:b", "a b", "c"]})
    assert alike[0].name == longer[1].name, "a point keeps its name in a larger sweep"
    same = points_of({"arms.a.training.clip": [1], "arms.b.training.clip": [2]})
    assert same[0].name == "arms.a.training.clip-1_arms.b.training.clip-2"


def test_a_variant_is_made_of_what_was_written(tmp_path: Path) -> None:
    """A built-in arm follows its base: resolved, ``replace`` would keep the heads it had."""
    fields = {"arms": ["mha", "replace"], "sweep": {"model.num_attention_heads": [2, 4]}}
    written = read_written(write(tmp_path, **fields))
    heads = [
        written.variant(point.values).arm_model("replace").num_attention_heads
        for point in points_of(written.recipe.sweep)
    ]
    assert heads == [1, 2]
    again = tmp_path / "again.yaml"
    again.write_text(written.text({"training.num_threads": 2}))
    kept = read_written(again)
    assert kept.recipe.sweep == written.recipe.sweep
    assert kept.variant({"model.num_attention_heads": 4}).training.num_threads == 2


def test_a_recipe_without_a_sweep_is_written_without_it(tmp_path: Path) -> None:
    assert "sweep" not in dump_recipe(loaded(tmp_path))
    assert "sweep" in dump_recipe(loaded(tmp_path, "training.clip=1,2"))
