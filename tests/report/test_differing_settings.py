"""What a report says that the arms differ in."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from wuneng.recipe import dump_recipe, load_recipe
from wuneng.report.arms import differing_settings

RECIPE = """\
model: {num_state_heads: 2}
init_from: my-llama
train: new
arms:
  wuneng:
  lora: {model: {num_state_heads: 0}, lora: {match: wuneng}}
  scratch: {init_from: null, train: all, model: {num_hidden_layers: 3}}
data: {kind: text, train: texts/, tokenizer: bytes}
training: {steps: 4}
"""


def told(tmp_path: Path, recipe: str) -> dict[str, dict[str, Any]]:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    stored = yaml.safe_load(dump_recipe(load_recipe(path)))
    records: Any = SimpleNamespace(recipe=stored, study=None, sweep=None)
    section = differing_settings(records)
    assert section is not None
    return {str(row["setting"]): dict(row) for row in section.rows}


def test_what_is_left_to_a_model_is_no_difference(tmp_path: Path) -> None:
    """An arm from nothing states all of its fields, those that start from a model what they set."""
    rows = told(tmp_path, RECIPE)
    named = {"model.num_state_heads", "model.cross_head", "init_from", "train", "match"}
    assert {path for path in rows if not path.startswith("lora")} <= named
    heads = rows["model.num_state_heads"]
    assert (heads["wuneng"], heads["lora"], heads["scratch"]) == ("2", "0", "2")


def test_an_arm_of_another_kind_says_what_it_has(tmp_path: Path) -> None:
    rows = told(tmp_path, RECIPE.partition("init_from")[0] + "arms: [wuneng, gated-delta, mha]\n"
                + RECIPE[RECIPE.index("data:") :])  # fmt: skip
    assert rows["model.state_gate_sigmoid"]["gated-delta"] == "null"
    assert rows["model.output_init"]["mha"] == "normal"
    assert "model.state_a_max" not in rows
