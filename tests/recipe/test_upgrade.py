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
        (
            "train=nwe",
            "train: expected 'all', 'new', 'none', .*a list.*got 'nwe'. Did you mean",
        ),
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


STAGED = ("arms.lora.stages=null", "stages=[{align: {steps: 4}}, {distill: {steps: 2}}, tune]")


def test_stages_are_for_arms_that_learn_and_come_back_from_a_dump(tmp_path: Path) -> None:
    recipe = load(tmp_path, *STAGED)
    assert recipe.arms["source"].stages is None
    stages = recipe.arms["wuneng"].stages
    assert stages is not None
    assert [(stage.kind, stage.settings.steps) for stage in stages] == [
        *(("align", 4), ("distill", 2), ("tune", None)),
    ]
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{distil: {}}]", r"stages.0.distil is not a known field. Did you mean 'distill'\?"),
        ("[alin]", r"stages.0: expected one of 'align', .*got 'alin'. Did you mean 'align'\?"),
        ("[{align: {}, tune: {}}]", r"stages.0: expected one of 'align', 'distill' and 'tune'"),
        ("[{align: {stesp: 2}}]", r"stages.0.align.stesp is not a known .*mean 'steps'\?"),
        ("[{align: {target: hiden}}, tune]", r"target: expected .*Did you mean 'hidden'\?"),
        ("[]", "stages: expected at least one stage, or null"),
        ("[align, tune]", r"stages.1.tune.steps: expected a number: stages.0 takes"),
        ("[{align: {steps: 4}}]", "stages: expected steps that add up to training's 10, got 4"),
        ("[{align: {steps: 10}}, tune]", "stages: expected fewer than training's 10 steps"),
        ("[{align: {warmup_steps: 10}}]", "align.warmup_steps: expected fewer than the stage's 10"),
        ("[{tune: {train: nwe}}]", r"stages.0.tune.train: expected .*Did you mean 'new'\?"),
        ("[{tune: {train: none}}]", "stages.0.tune.train: expected something that trains"),
        ("[{distill: {train: new+lora}}]", "distill.train: new.lora needs lora, the arm's"),
        (
            "[{tune: {train: all, steps: 5}}, {distill: {steps: 5}}]",
            r"stages.1.distill: its teacher is the model .* stages.0 \(tune\) before it trains",
        ),
    ],
)
def test_stages_that_contradict_themselves(tmp_path: Path, stages: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, "arms.lora.stages=null", f"stages={stages}")


def test_stages_need_heads_a_source_and_no_other_teacher(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="stages: align trains state heads, and this arm has no"):
        load(tmp_path, STAGED[1])
    with pytest.raises(RecipeError, match="stages: expected none beside distill"):
        load(tmp_path, *STAGED, "distill={}")
    with pytest.raises(RecipeError, match=r"stages: needs init_from"):
        load(tmp_path, "init_from=null", "train=all", "arms={wuneng: {}}", "stages=[tune]")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["arms.wuneng.replace=1.5"], r"arms.wuneng.replace: expected .*got 1.5"),
        (["arms.wuneng.replace=0"], r"arms.wuneng.replace: expected .*got 0"),
        (["arms.lora.replace=0.5"], "arms.lora.replace: expected state heads that train"),
        (
            ["arms.wuneng.replace=0.5", "arms.wuneng.model.cross_head=gated"],
            "arms.wuneng.replace: expected state_key_source: own, .*got cross_head: gated",
        ),
        (
            ["init_from=null", "train=all", "arms={wuneng: {replace: 0.5}}"],
            "arms.wuneng.replace: needs init_from",
        ),
    ],
)
def test_what_cannot_replace_attention(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(tmp_path, *changes)


def test_what_replaces_attention_has_sources_of_its_own(tmp_path: Path) -> None:
    recipe = load(tmp_path, "arms.wuneng.replace=0.5", "model.cross_head=gated")
    model = recipe.arms["wuneng"].model
    assert (model.state_key_source, model.state_value_source, model.cross_head) == (
        *("own", "own", "none"),
    )
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(path) == recipe
