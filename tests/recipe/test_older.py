"""Recipes that earlier versions wrote into run directories mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wuneng.recipe import dump_recipe, load_recipe

STORED = Path(__file__).parents[1] / "fixtures" / "run" / "recipe.yaml"
MIXED = """\
model: {num_state_heads: 2}
init_from: my-llama
arms:
  wuneng:
  scratch: {init_from: null, model: {num_hidden_layers: 3}}
data: {kind: text, train: texts/, tokenizer: bytes}
training: {steps: 4}
"""


def written(tmp_path: Path, recipe: dict) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path


def test_every_arm_of_a_stored_recipe_starts_as_it_did() -> None:
    recipe = load_recipe(STORED)
    for name in recipe.arms:
        model = recipe.arm_model(name)
        assert (model.output_init, model.state_branch_init) == ("normal", "normal"), name
        assert (model.state_init, model.initializer_range) == ("published", 0.02), name


def test_an_override_of_a_stored_recipe_counts() -> None:
    recipe = load_recipe(STORED, ["model.output_init=small"])
    assert recipe.model.output_init == "small"


def test_what_a_person_writes_has_the_defaults_of_today(tmp_path: Path) -> None:
    stored = yaml.safe_load(STORED.read_text())
    for whole, field in (("training", "eps"), ("training", "num_threads")):
        mine = {**stored, whole: {k: v for k, v in stored[whole].items() if k != field}}
        recipe = load_recipe(written(tmp_path, mine))
        assert (recipe.model.output_init, recipe.model.state_init) == ("zero", None)


def test_todays_recipes_load_as_they_were_written(tmp_path: Path) -> None:
    first = load_recipe(STORED, ["model.output_init=zero", "model.state_init=even"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(first))
    assert load_recipe(path).model_dump() == first.model_dump()


def test_an_arm_from_scratch_beside_one_that_starts_from_a_model(tmp_path: Path) -> None:
    """There ``model`` holds only what the user set; what every arm has otherwise is written."""
    source = tmp_path / "mixed.yaml"
    source.write_text(MIXED)
    today = load_recipe(source)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(today))
    again = load_recipe(path)
    assert again == today
    assert again.arm_model("scratch").output_init == "zero"

    older = yaml.safe_load(path.read_text())
    assert older["arms"]["scratch"]["model"].pop("output_init") == "zero"
    older["arms"]["wuneng"]["model"].pop("output_init", None)
    recipe = load_recipe(written(tmp_path, older))
    model = recipe.arm_model("scratch")
    assert (model.output_init, model.state_branch_init) == ("normal", "normal")
    assert (model.state_init, model.initializer_range) == ("published", 0.02)
    assert model.state_key_source == "attention"
    assert recipe.arm_model("wuneng").model_fields_set == {"num_state_heads"}


@pytest.mark.parametrize("broken", [None, [], {"model": []}, {"training": 3}, {"arms": {"a": 3}}])
def test_a_broken_file_is_left_to_the_checks(broken: object, tmp_path: Path) -> None:
    stored = yaml.safe_load(STORED.read_text())
    mine = {**stored, **broken} if isinstance(broken, dict) else broken
    with pytest.raises(Exception, match="expected") as found:
        load_recipe(written(tmp_path, mine))
    assert type(found.value).__name__ == "RecipeError"
