"""Where nobody says otherwise, heads are wired as measured best; older files mean what they did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model.small import BASE, disturbed
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.convert.graft import GraftSettings, grafted_config
from wuneng.convert.source import locate
from wuneng.convert.transformer import _plain_fields
from wuneng.convert.upgrade import graft_of
from wuneng.default_wiring import KINDS_OWN, MIDDLE_WIRING
from wuneng.kinds import load_kind
from wuneng.layers.state.base import OPTIONAL
from wuneng.recipe import ModelSettings, load_recipe
from wuneng.recipe.arms import built_in, resolve_model
from wuneng.recipe.model import PAPER_WIRING

RECIPES = Path(__file__).parents[2] / "recipes"
#: What docs/findings.md found, by the names of fields.
MEASURED = {
    "cross_head": "none",
    "state_key_source": "own",
    "state_a_max": 2.0,
    "attention_token_shift": True,
    "state_output_gate": True,
    "state_gate_sigmoid": "output",
}


def wiring(fields: Any) -> dict[str, Any]:
    return {name: getattr(fields, name) for name in MEASURED}


def test_a_configuration_and_a_recipe_say_what_measured_best() -> None:
    assert wiring(WuNengConfig()) == wiring(resolve_model({}, {})) == MEASURED
    assert set(MIDDLE_WIRING) == set(MEASURED)


@pytest.mark.parametrize("kind", KINDS_OWN)
def test_the_table_of_kinds_is_their_own(kind: str) -> None:
    own = {name: getattr(WuNengConfig(state_kind=kind), name) for name in KINDS_OWN[kind]}
    assert own == KINDS_OWN[kind]
    assert load_kind("state", kind).gated
    assert OPTIONAL["state_a_max"] == 1.0


@pytest.mark.parametrize("name", ["text", "python-bytes", "study-bytes", "study-gate-form"])
def test_recipes_for_text_have_it(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    assert wiring(recipe.arm_model("wuneng")) == MEASURED


def test_attention_alone_is_the_plain_baseline() -> None:
    for model in (WuNengConfig(num_state_heads=0), resolve_model({}, {"num_state_heads": 0})):
        assert (model.attention_token_shift, model.output_init) == (False, "normal")
    shifted = resolve_model({}, {"num_state_heads": 0, "attention_token_shift": True})
    assert shifted.attention_token_shift
    for arm in ("no-shift", "kda", "gated-delta"):  # whose state heads are not shifted
        assert not resolve_model({}, built_in(arm, ModelSettings())).attention_token_shift


def test_null_is_as_if_nothing_was_said() -> None:
    """An arm without state heads, or with another kind of them, decides anew."""
    open_ = dict.fromkeys(("output_init", "attention_token_shift", *KINDS_OWN["rwkv7"]))
    assert resolve_model(open_, {}) == resolve_model({}, {})
    plain = resolve_model(open_, {"num_state_heads": 0})
    assert (plain.output_init, plain.attention_token_shift) == ("normal", False)
    for kind, own in KINDS_OWN.items():
        there = resolve_model({"state_output_gate": False}, open_ | {"state_kind": kind})
        assert {name: getattr(there, name) for name in own} == own
    loaded = resolve_model({}, {"num_state_heads": 4}, loaded=True)
    assert loaded.model_fields_set == {"num_state_heads"}
    assert loaded.state_a_max is None


def test_another_kind_brings_its_own() -> None:
    assert WuNengConfig(state_a_max=1.0).changed({"state_kind": "kda"}).state_a_max == 1.0
    kda = WuNengConfig().changed({"state_kind": "kda"})
    assert {name: getattr(kda, name) for name in KINDS_OWN["kda"]} == KINDS_OWN["kda"]


def test_rwkv7_alone_has_its_own_rates() -> None:
    for base, largest in ((ModelSettings(), 1.0), (ModelSettings(state_a_max=2.0), 2.0)):
        assert built_in("rwkv7", base)["state_a_max"] == largest


def test_a_graft_keeps_few_new_parameters() -> None:
    plain = {"num_attention_heads": 4, "head_dim": 16, "hidden_size": 64}
    assert wiring(grafted_config(plain, GraftSettings(2))) == MIDDLE_WIRING
    kda = grafted_config(plain, GraftSettings(2, state_kind="kda"))
    assert (kda.state_output_gate, kda.state_gate_sigmoid) == (True, "output")
    shifted = grafted_config({**plain, "attention_token_shift": True}, GraftSettings(2))
    assert shifted.attention_token_shift is True
    for kind, own in KINDS_OWN.items():  # as a recipe names a kind
        asked = ModelSettings(num_state_heads=2, state_kind=kind)
        config = grafted_config(plain, graft_of(asked))
        gate = (config.state_output_gate, config.state_gate_sigmoid)
        wanted = (own["state_output_gate"], own["state_gate_sigmoid"])
        assert gate == ((False, "hidden") if kind == "rwkv7" else wanted)
        assert config.state_a_max == 1.0


def test_a_graft_on_our_own_attention_is_the_same(tmp_path: Path) -> None:
    """Whatever a model without state heads says of them was nobody's choice."""
    config = WuNengConfig(**(BASE | {"num_state_heads": 0, "state_a_max": 2.0}))
    WuNengForCausalLM(config).save_pretrained(tmp_path)
    fields = _plain_fields(locate(str(tmp_path)))
    assert wiring(grafted_config(fields, GraftSettings(2))) == MIDDLE_WIRING


@pytest.mark.parametrize("gate", [False, True])
def test_a_file_without_the_gates_form_has_rwkv_lms(gate: bool, tmp_path: Path) -> None:
    """As every version wrote it before the other form was there."""
    torch.manual_seed(0)
    fields = BASE | {"state_output_gate": gate, "state_gate_sigmoid": "hidden"}
    model = disturbed(WuNengForCausalLM(WuNengConfig(**fields)).eval())
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["state_gate_sigmoid"]
    path.write_text(json.dumps(stored))
    loaded = WuNengForCausalLM.from_pretrained(tmp_path)
    assert not gate or loaded.config.state_gate_sigmoid == "hidden"
    ids = torch.arange(20)[None]
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    by_hand = {name: value for name, value in stored.items() if name != "transformers_version"}
    assert WuNengConfig.from_dict(by_hand).state_gate_sigmoid == "output"


def test_the_papers_wiring_does_not_follow_the_defaults() -> None:
    paper = resolve_model({"preset": "paper"}, {})
    without_gate = MIDDLE_WIRING | {"cross_head": "none", "state_gate_sigmoid": "output"}
    assert wiring(paper) == wiring(WuNengConfig(**PAPER_WIRING)) == without_gate
