"""Recipes that start from a model: what may be said, what contradicts itself, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from wuneng.errors import RecipeError
from wuneng.recipe import Recipe, dump_recipe, load_recipe

RECIPE: dict[str, Any] = {
    "init_from": "my-llama",
    "train": "new",
    "model": {"num_state_heads": 3},
    "arms": {
        "source": {"model": {"num_state_heads": 0}, "train": "none"},
        "wuneng": {},
        "lora": {"model": {"num_state_heads": 0}, "lora": {"match": "wuneng"}},
    },
    "data": {"kind": "text", "train": "texts/"},
    "training": {"steps": 10, "sequence_length": 4096},
}


def load(place: Path, *changes: str) -> Recipe:
    path = place / "upgrade.yaml"
    path.write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    return load_recipe(path, changes)


def test_arms_take_over_how_the_recipe_starts(tmp_path: Path) -> None:
    recipe = load(tmp_path, "distill={kl: 0.5}", "arms.wuneng.init_from=other")
    assert recipe.source == "my-llama"
    assert {name: arm.init_from for name, arm in recipe.arms.items()} == {
        "source": "my-llama",
        "wuneng": "other",
        "lora": "my-llama",
    }
    assert [arm.train for arm in recipe.arms.values()] == ["none", "new", "new"]
    # A teacher for all is for all that learn.
    assert [arm.distill is None for arm in recipe.arms.values()] == [True, False, False]
    assert {arm.match for arm in recipe.arms.values()} == {"width"}


def test_the_sources_tokenizer_is_the_default(tmp_path: Path) -> None:
    assert load(tmp_path).data.tokenizer == "source"  # type: ignore[union-attr]
    assert load(tmp_path, "data.tokenizer=bytes").data.tokenizer == "bytes"  # type: ignore[union-attr]


def test_a_built_in_arm_is_not_widened(tmp_path: Path) -> None:
    recipe = load(tmp_path, "arms={wuneng: {}, mha: {train: all}}")
    assert recipe.arms["mha"].match == "width"


def test_a_dump_demands_only_what_the_recipe_does(tmp_path: Path) -> None:
    """Sizes that the loaded model decides must not come back as the recipe's own."""
    recipe = load(tmp_path, "training.learning_rates={cross_head: 2, 'w0$': 0.5}", "distill={}")
    text = dump_recipe(recipe)
    assert yaml.safe_load(text)["model"] == {"num_state_heads": 3}
    again = tmp_path / "again.yaml"
    again.write_text(text)
    loaded = load_recipe(again)
    assert dump_recipe(loaded) == text
    assert loaded.arms == recipe.arms
    fields = {name: arm.model.model_fields_set for name, arm in loaded.arms.items()}
    assert fields["wuneng"] == {"num_state_heads"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train=nwe", r"train: expected 'all', 'new', 'none' or a list.*got 'nwe'. Did you mean"),
        ("train=['(']", "expected a regular expression"),
        ("arms.source.train=new", "arms.source.train: new means state and middle heads, or LoRA's"),
        ("arms.lora.train=all", "arms.lora.train: expected new where lora is set"),
        ("arms.lora.lora={}", "arms.lora.lora: expected either rank or match"),
        ("arms.lora.lora.rank=2", "arms.lora.lora: expected either rank or match"),
        ("arms.lora.lora.match=wunneg", r"expected another arm without lora.*mean 'wuneng'"),
        ("arms.wuneng.match=parameters", "arms.wuneng.match: expected width where init_from"),
        ("arms.source.distill={}", "arms.source.distill: nothing learns from a teacher"),
        ("init_from=null", r"train: expected all where init_from is left out, got new \(arm wun"),
        ("training.learning_rates={a: 0}", "expected a value above 0"),
        ("distill.temperature=0", "distill.temperature: expected a value above 0"),
        ("distill.techer=x", "distill.techer is not a known field. Did you mean 'teacher'"),
    ],
)
def test_what_contradicts_itself_is_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, change)


def test_without_a_source_there_is_no_tokenizer_of_it(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    plain = {"data": {**RECIPE["data"], "tokenizer": "source"}, "training": {"steps": 1}}
    path.write_text(yaml.safe_dump(plain))
    with pytest.raises(RecipeError, match=r"data\.tokenizer: source is the tokenizer of"):
        load_recipe(path)
