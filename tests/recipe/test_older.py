"""Recipes that earlier versions wrote into run directories mean what they meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from wuneng.default_wiring import MIDDLE_WIRING
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
    assert older["arms"]["scratch"]["model"]["output_init"] == "zero"
    older["arms"]["scratch"]["model"] = {"num_hidden_layers": 3}
    recipe = load_recipe(written(tmp_path, older))
    model = recipe.arm_model("scratch")
    assert (model.output_init, model.state_branch_init) == ("normal", "normal")
    assert (model.state_init, model.initializer_range) == ("published", 0.02)
    assert {name: getattr(model, name) for name in MIDDLE_WIRING} == MIDDLE_WIRING
    assert recipe.arm_model("wuneng").model_fields_set == {"num_state_heads"}


@pytest.mark.parametrize("broken", [None, [], {"model": []}, {"training": 3}, {"arms": {"a": 3}}])
def test_a_broken_file_is_left_to_the_checks(broken: object, tmp_path: Path) -> None:
    stored = yaml.safe_load(STORED.read_text())
    mine = {**stored, **broken} if isinstance(broken, dict) else broken
    with pytest.raises(Exception, match="expected") as found:
        load_recipe(written(tmp_path, mine))
    assert type(found.value).__name__ == "RecipeError"


def test_a_gate_left_open_in_a_stored_recipe(tmp_path: Path) -> None:
    """As versions wrote it whose RWKV-7 heads had none by default, for an arm of each kind."""
    source = tmp_path / "arms.yaml"
    source.write_text(
        "model: {num_hidden_layers: 4}\n"
        "arms: {wuneng: , kda: , rwkv7: , mine: {model: {state_kind: gated_delta}},\n"
        "  gated-rwkv: {model: {state_output_gate: true}}}\n"
        "data: {kind: text, train: texts/, tokenizer: bytes}\ntraining: {steps: 4}\n"
    )
    older = yaml.safe_load(dump_recipe(load_recipe(source)))
    older["model"].update(state_output_gate=None)
    del older["model"]["state_gate_sigmoid"]
    for name, arm in older["arms"].items():
        arm["model"].pop("state_gate_sigmoid", None)
        if name not in ("rwkv7", "gated-rwkv"):
            arm["model"].pop("state_output_gate", None)
    older["arms"]["gated-rwkv"]["model"]["state_output_gate"] = True
    recipe = load_recipe(written(tmp_path, older))
    found = {name: recipe.arm_model(name) for name in recipe.arms}
    gates = {n: (m.state_output_gate, m.state_gate_sigmoid) for n, m in found.items()}
    assert gates == {
        "wuneng": (False, "output"),  # of a gate that is not there
        "kda": (True, "output"),
        "rwkv7": (True, "hidden"),
        "mine": (True, None),
        "gated-rwkv": (True, "hidden"),
    }


@pytest.mark.parametrize("kind", ["kda", "gated_delta", "rwkv7"])
def test_arms_of_every_kind_from_nothing_beside_models(kind: str, tmp_path: Path) -> None:
    """Today's dump loads as it was; one of before, which lacked defaults, as it was then."""
    source = tmp_path / "mixed.yaml"
    source.write_text(
        MIXED.replace("num_hidden_layers: 3", f"num_hidden_layers: 3, state_kind: {kind}")
    )
    today = load_recipe(source)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(today))
    assert load_recipe(path) == today
    assert dump_recipe(load_recipe(path)) == path.read_text()

    older = yaml.safe_load(path.read_text())
    fields = {"num_hidden_layers": 3, "state_kind": kind, "output_init": "zero"}
    older["arms"]["scratch"]["model"] = fields
    model = load_recipe(written(tmp_path, older)).arm_model("scratch")
    assert (model.cross_head, model.state_key_source, model.state_a_max) == (
        "gated",
        "attention",
        1,
    )
    assert model.attention_token_shift is False
    assert model.state_output_gate is (kind != "rwkv7")


@pytest.mark.parametrize("kind", ["kda", "gated_delta"])
def test_a_base_of_another_kind_is_written_back(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "mixed.yaml"
    source.write_text(MIXED.replace("model: {", f"model: {{state_kind: {kind}, "))
    today = load_recipe(source)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(today))
    assert load_recipe(path) == today
