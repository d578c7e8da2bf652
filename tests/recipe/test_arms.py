"""Arms: the built-in ones, changes on top of the shared model, presets, and what contradicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from wuneng.errors import RecipeError
from wuneng.model import from_settings
from wuneng.model.skeleton import layout
from wuneng.recipe import BUILT_IN_ARMS, Recipe, load_recipe
from wuneng.recipe.model import PAPER_WIRING


def recipe(model: dict[str, Any], arms: Any, **training: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "model": model,
            "arms": arms,
            "data": {"kind": "synthetic", "tasks": [{"task": "recall"}]},
            "training": {"steps": 10, **training},
        }
    )


def problems(model: dict[str, Any], arms: Any = ("wuneng",), **training: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        recipe(model, list(arms) if isinstance(arms, tuple) else arms, **training)
    return str(caught.value)


@pytest.mark.parametrize("wide", [False, True])
def test_plain_attention_has_no_state(wide: bool) -> None:
    """Nor the shift that the model's own attention may have, but for the arm named after it."""
    shifts = {"mha": False, "mha-shift": True, "mha-conv": False, "mha-heads": False}
    found = recipe({"snapshots": 2, "attention_token_shift": wide}, ["wuneng", *shifts])
    for name, shift in shifts.items():
        model = found.arm_model(name)
        assert (model.num_state_heads, model.cross_head, model.snapshots) == (0, "none", 0)
        assert model.attention_token_shift is shift
        assert found.arms[name].match == "parameters"
    assert found.arm_model("wuneng") == found.model


@pytest.mark.parametrize("name", BUILT_IN_ARMS)
def test_what_is_not_the_states_is_every_arms(name: str) -> None:
    """Initial values, norms and tying are the baselines' as well, and no arm is short of them."""
    shared = {
        "embedding_norm": True,
        "qk_norm": True,
        "norm": "layernorm",
        "tie_word_embeddings": False,
        "initializer_range": 0.03,
        "output_init": "small",
    }
    model = recipe(
        {"num_hidden_layers": 2, **shared}, ["wuneng", name] if name != "wuneng" else [name]
    )
    arm = model.arm_model(name)
    assert {field: getattr(arm, field) for field in shared} == shared
    parts = layout(from_settings(arm, 64)).parameters
    assert "model.embed_norm.bias" in parts
    assert "lm_head.weight" in parts
    attention = [field for field in parts if field.endswith("self_attn.q_proj.weight")]
    norms = [field for field in parts if field.endswith("self_attn.q_norm.weight")]
    assert len(attention) == len(norms)
    assert bool(norms) == (arm.num_attention_heads > 0)


def test_the_pure_arm_starts_as_the_models_own_heads_do() -> None:
    assert (
        recipe({"state_init": "published"}, ["rwkv7"]).arm_model("rwkv7").state_init == "published"
    )
    other = recipe({"state_kind": "kda", "state_init": "published"}, ["rwkv7", "gated-delta"])
    assert other.arm_model("rwkv7").state_init is None
    assert other.arm_model("gated-delta").state_init is None


def test_pure_state_fills_the_width() -> None:
    found = recipe(
        {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}, ["rwkv7"]
    )
    model = found.arm_model("rwkv7")
    assert (model.num_attention_heads, model.num_state_heads) == (0, 4)
    assert model.state_head_size == 32
    assert (model.state_key_source, model.state_value_source) == ("own", "own")
    assert model.num_key_value_heads is None


@pytest.mark.parametrize(("groups", "left"), [(None, None), (8, 6), (4, 3), (2, 2), (1, 1)])
def test_replacing_keeps_the_head_size(groups: int | None, left: int | None) -> None:
    found = recipe(
        {"hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": groups}, ["replace"]
    )
    model = found.arm_model("replace")
    assert (model.num_attention_heads, model.attention_head_size) == (6, 32)
    assert model.num_key_value_heads == left


def test_replacing_needs_heads_to_replace() -> None:
    assert "num_attention_heads: expected 2 or more, of which some are replaced, got 1" in problems(
        {"num_attention_heads": 1}, ("replace",)
    )


@pytest.mark.parametrize(
    ("heads", "states", "found"),
    [(8, 2, (2, 6)), (4, 4, (2, 2)), (2, 2, (1, 1)), (4, 8, (2, 2)), (6, 6, (3, 3)),
     (5, 5, (1, 4)), (9, 9, (3, 6))],
)  # fmt: skip
def test_as_many_state_heads_replace_half(heads: int, states: int, found: tuple[int, int]) -> None:
    model = recipe(
        {"hidden_size": heads * 32, "num_attention_heads": heads, "num_state_heads": states},
        ["replace"],
    ).arm_model("replace")
    assert (model.num_state_heads, model.num_attention_heads) == found
    assert model.attention_head_size == 32


@pytest.mark.parametrize(
    ("changes", "heads", "groups"),
    [
        ({}, 6, 6),
        ({"num_key_value_heads": 2}, 6, 3),
        ({"num_key_value_heads": 1}, 8, 2),
        ({"state_head_dim": 32, "cross_head": "none"}, 5, 5),
    ],
)
def test_attention_heads_for_the_state_heads(
    changes: dict[str, Any], heads: int, groups: int
) -> None:
    """As many channels, in whole groups of heads that share a key; sized to the same parameters."""
    model = recipe({"num_attention_heads": 4, **changes}, ["mha-heads"]).arm_model("mha-heads")
    assert (model.num_attention_heads, model.num_key_value_heads) == (heads, groups)
    assert (model.num_state_heads, model.attention_head_size) == (0, 64)
    assert BUILT_IN_ARMS["mha-heads"].match == "parameters"


RECIPES = Path(__file__).resolve().parents[2] / "recipes"


@pytest.mark.parametrize("name", [a for a in BUILT_IN_ARMS if a != "wuneng"])
@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_built_in_arm_is_for_every_shipped_recipe(path: Path, name: str) -> None:
    """Or says why not: an upgrade keeps the attention heads that it starts from."""
    changes = [f"arms=[wuneng, {name}]"]
    upgrade = path.stem.startswith("upgrade-")
    if upgrade and name in ("replace", "mha-heads"):
        with pytest.raises(RecipeError, match="are a trained model's"):
            load_recipe(path, changes)
    elif upgrade and name in ("mha", "mha-shift", "mha-conv"):
        with pytest.raises(RecipeError, match="this arm has neither"):
            load_recipe(path, changes)
    else:
        assert name in load_recipe(path, changes).arms


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("no-shift", "token_shift", "none"),
        ("no-snapshots", "snapshots", 0),
        ("no-middle", "cross_head", "none"),
        ("concat", "cross_head", "concat"),
        ("additive", "cross_head", "additive"),
        ("gated", "cross_head", "gated"),
    ],
)
def test_ablations_change_one_field(name: str, field: str, value: Any) -> None:
    found = recipe({"snapshots": 1, "cross_head": "concat"}, ["wuneng", name])
    base, model = found.model.model_dump(), found.arm_model(name).model_dump()
    assert model[field] == value
    follows = {"attention_token_shift"} if field == "token_shift" else set()
    assert {k for k in model if model[k] != base[k]} <= {field} | follows


def test_every_built_in_arm_works_with_the_defaults() -> None:
    assert list(recipe({}, list(BUILT_IN_ARMS)).arms) == list(BUILT_IN_ARMS)


def test_changes_come_on_top_of_the_built_in_arm() -> None:
    found = recipe({}, {"wuneng": None, "mha": {"model": {"hidden_size": 512}, "match": "width"}})
    assert found.arm_model("mha").num_state_heads == 0
    assert found.arm_model("mha").hidden_size == 512
    assert found.arms["mha"].match == "width"


def test_an_arm_has_its_own_optimizer_settings() -> None:
    arms = {"wuneng": {}, "mha": {"training": {"learning_rate": 0.5, "betas": [0.9, 0.95]}}}
    found = recipe({}, arms, learning_rate=0.25)
    assert found.arm_training("wuneng").learning_rate == 0.25
    assert found.arm_training("mha").learning_rate == 0.5
    assert found.arm_training("mha").betas == [0.9, 0.95]
    assert found.arm_training("mha").steps == 10


def test_unknown_arms_need_changes() -> None:
    told = problems({}, ("wuneng", "mah"))
    assert "arms.mah: not a built-in arm (wuneng, mha, mha-shift" in told
    assert "Did you mean 'mha'?" in told
    assert "not a built-in arm" in problems({}, {"other": {"match": "flops"}})


def test_paper_preset_fills_what_is_not_set() -> None:
    found = recipe({"preset": "paper", "token_shift": "post"}, {
        "wuneng": {}, "gated": {}, "mha": {},
    })  # fmt: skip
    model = found.arm_model("wuneng").model_dump()
    expected = {**PAPER_WIRING, "token_shift": "post"}
    assert {name: model[name] for name in PAPER_WIRING} == expected
    assert found.arm_model("gated").cross_head == "gated"
    assert found.arm_model("gated").state_value_source == "attention_output"
    assert found.arm_model("mha").ffn == "mlp"


def test_paper_preset_on_one_arm() -> None:
    found = recipe({"state_norm": "group"}, {"wuneng": {}, "paper": {"model": {"preset": "paper"}}})
    assert found.arm_model("wuneng").state_value_source == "attention"
    assert found.arm_model("paper").state_value_source == "attention_output"
    assert found.arm_model("paper").state_norm == "group"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"num_attention_heads": 3},
            "model.num_attention_heads: expected a divisor of hidden_size",
        ),
        (
            {"num_key_value_heads": 3},
            "model.num_key_value_heads: expected a divisor of num_attention",
        ),
        ({"head_dim": 33}, "model.head_dim: expected an even size, got 33"),
        ({"num_attention_heads": 0, "num_state_heads": 0}, "expected 1 or more"),
        (
            {"num_attention_heads": 0, "state_key_source": "attention"},
            "model.state_key_source: expected own where",
        ),
        ({"num_attention_heads": 0}, "model.state_value_source: expected own where"),
        ({"num_state_heads": 0, "cross_head": "gated"}, "model.cross_head: expected none where"),
        (
            {"state_head_dim": 32, "cross_head": "gated"},
            "model.state_head_dim: expected the size of an attention head (64)",
        ),
        (
            {"num_state_heads": 3, "cross_head": "gated"},
            "model.num_state_heads: expected a divisor or a multiple",
        ),
        ({"state_a_max": 1.5}, "model.state_a_max: expected 1.0 or 2.0, got 1.5"),
        ({"snapshot_every": 24}, "model.snapshot_every: expected a multiple of 16, got 24"),
        ({"token_shift_on": "rr"}, "model.token_shift_on: expected each letter once, got 'rr'"),
        ({"state_layers": [0, 6]}, "model.state_layers: expected layers from 0 to 5, got 6"),
        (
            {"rope_scaling": {"rope_type": "yarm"}},
            "expected rope_type to be one of default, linear",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type yarn needs factor"),
    ],
)
def test_contradictions_in_a_model(model: dict[str, Any], message: str) -> None:
    assert message in problems(model)


def test_contradictions_are_placed_where_they_were_written() -> None:
    told = problems(
        {"hidden_size": 64}, {"wuneng": {}, "odd": {"model": {"num_attention_heads": 3}}}
    )
    assert "arms.odd.model.num_attention_heads: expected a divisor of hidden_size (64)" in told
    told = problems({}, {"wuneng": {}, "slow": {"training": {"warmup_steps": 99}}})
    assert "arms.slow.training.warmup_steps: expected fewer than the 10 steps" in told


def test_state_heads_of_their_own_size_need_no_middle_heads() -> None:
    found = recipe({"state_head_dim": 32, "cross_head": "none", "num_state_heads": 3}, ["wuneng"])
    assert found.arm_model("wuneng").state_head_size == 32
