"""A resolved recipe, written out, loads to an equal one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wuneng.recipe import BUILT_IN_ARMS, ModelSettings, Recipe, dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml"))


def again(recipe: Recipe, directory: Path) -> Recipe:
    path = directory / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_survive_a_dump(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.description
    assert again(recipe, tmp_path) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_have_their_controls(path: Path) -> None:
    """A study of one question may name its control by what it varies: ``mha-shift-normal``."""
    recipe = load_recipe(path)
    assert "wuneng" in recipe.arms
    if recipe.source:
        assert {"source", "lora"} <= set(recipe.arms)
    elif recipe.study is None:
        assert {"mha", "mha-shift"} <= set(recipe.arms)
    else:
        assert any(name.startswith("mha-shift") for name in recipe.arms)


def test_the_promised_recipes_are_there() -> None:
    assert {path.stem for path in RECIPES} >= {"quickstart", "python-bytes", "text", "fineweb-130m"}


def test_a_dump_is_complete_and_plain_yaml(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[0])
    written = yaml.safe_load(dump_recipe(recipe))
    assert written["model"] == recipe.model.model_dump()
    assert written["training"] == recipe.training.model_dump()


def test_a_second_dump_is_the_same_text(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPES[0])
    assert dump_recipe(again(recipe, tmp_path)) == dump_recipe(recipe)


ARM = st.fixed_dictionaries(
    {},
    optional={
        "model": st.fixed_dictionaries(
            {},
            optional={
                "preset": st.sampled_from(["none", "paper"]),
                "cross_head": st.sampled_from(["gated", "none", "concat"]),
                "token_shift": st.sampled_from(["post", "none", "pre"]),
                "snapshots": st.sampled_from([0, 1, 3]),
                "state_norm": st.sampled_from(["group", "none"]),
                "ffn": st.sampled_from(["swiglu", "mlp"]),
                "intermediate_size": st.sampled_from([None, 96]),
            },
        ),
        "match": st.sampled_from(["width", "parameters", "flops"]),
        "training": st.fixed_dictionaries(
            {}, optional={"learning_rate": st.floats(1e-6, 1.0), "clip": st.just(0.5)}
        ),
    },
)
#: These have one kind of heads, and so cannot have middle heads.
STATELESS = [
    name
    for name, arm in BUILT_IN_ARMS.items()
    if 0
    in {arm.changes(ModelSettings()).get(f"num_{kind}_heads") for kind in ("attention", "state")}
]


@given(
    base=ARM,
    arms=st.dictionaries(
        st.sampled_from([name for name in BUILT_IN_ARMS if name not in STATELESS]), ARM, min_size=1
    ),
    stateless=st.sets(st.sampled_from(STATELESS)),
    learning_rate=st.floats(1e-8, 1.0),
)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_arms_survive_a_dump(
    tmp_path: Path, base: dict, arms: dict, stateless: set[str], learning_rate: float
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "x",
            "model": base.get("model", {}),
            "arms": {**arms, **{name: {} for name in sorted(stateless)}},
            "data": {
                "kind": "text",
                "train": {"dataset": "x", "config": "001"},
                "tokenizer": {"train_bpe": 512},
            },
            "training": {"tokens": 10**6, "learning_rate": learning_rate},
        }
    )
    assert again(recipe, tmp_path) == recipe
