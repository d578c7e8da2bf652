"""--set path.to.key=value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from wuneng.errors import RecipeError
from wuneng.recipe import SyntheticData, load_recipe

TEXT = """
arms: [wuneng, mha]
data: {kind: synthetic, tasks: [{task: recall}]}
training:
  steps: 10
  sequence_length: 64
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(TEXT, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("override", "read", "expected"),
    [
        ("training.steps=12", lambda r: r.training.steps, 12),
        ("training.steps=1k", lambda r: r.training.steps, 1024),
        ("training.learning_rate=1e-4", lambda r: r.training.learning_rate, 1e-4),
        ("training.betas=[0.8, 0.9]", lambda r: r.training.betas, [0.8, 0.9]),
        ("arms.mha.training.learning_rate=1e-2",
         lambda r: r.arm_training("mha").learning_rate, 1e-2),
        ("arms.mha.training.learning_rate=1e-2", lambda r: r.training.learning_rate, 1e-3),
        ("arms.mha.match=flops", lambda r: r.arms["mha"].match, "flops"),
        ("arms=[mha]", lambda r: list(r.arms), ["mha"]),
        ("arms.big={model: {snapshots: 4}}", lambda r: list(r.arms), ["wuneng", "mha", "big"]),
        ("data.tasks.0.pairs=16", lambda r: r.data.tasks[0].pairs, 16),
        ("model.num_state_heads=4", lambda r: r.arm_model("wuneng").num_state_heads, 4),
        ("model.state_layers=null", lambda r: r.model.state_layers, None),
        ("name=other", lambda r: r.name, "other"),
        ("description=a=b", lambda r: r.description, "a=b"),
        ("seed=[1, 2]", lambda r: r.seeds, [1, 2]),
    ],
)  # fmt: skip
def test_values_are_read_as_yaml(path: Path, override: str, read: Any, expected: Any) -> None:
    assert read(load_recipe(path, [override])) == expected


def test_arms_that_are_there_by_default_can_be_changed(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(TEXT.replace("arms: [wuneng, mha]", ""), encoding="utf-8")
    recipe = load_recipe(file, ["arms.mha.training.learning_rate=0.5"])
    assert list(recipe.arms) == ["wuneng", "mha", "mha-shift"]
    assert recipe.arm_training("mha").learning_rate == 0.5


def test_later_overrides_win(path: Path) -> None:
    recipe = load_recipe(path, ["training.steps=1", "training.steps=2", "arms=[wuneng, rwkv7]",
                                "arms.rwkv7.training.clip=2"])  # fmt: skip
    assert recipe.training.steps == 2
    assert recipe.arm_training("rwkv7").clip == 2.0


def test_a_whole_section_can_be_replaced(path: Path) -> None:
    recipe = load_recipe(path, ["data={kind: synthetic, tasks: [{task: state_tracking}]}"])
    assert isinstance(recipe.data, SyntheticData)
    assert recipe.data.tasks[0].task == "state_tracking"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps", "expected path.to.key=value, as in training.steps=100"),
        ("=3", "expected path.to.key=value"),
        ("a..b=3", "expected path.to.key=value"),
        ("trainin.steps=3", "trainin is not a known field. Did you mean 'training'?"),
        ("training.stesp=3", "training.stesp is not a known field. Did you mean 'steps'?"),
        ("training.steps=ten", "training.steps: expected a whole number"),
        ("training.steps=[1", "not valid YAML"),
        ("training.steps.x=1", "training.steps is 10, which has no fields"),
        ("data.tasks.1.pairs=3", "expected the number of an entry of data.tasks, 0 to 0, got '1'"),
        ("data.tasks.recall.pairs=3", "got 'recall'"),
        ("arms.mah.match=flops", "no arm 'mah' in this recipe: wuneng, mha. Did you mean 'mha'?"),
        ("arms=[wuneng, mah]", "Did you mean 'mha'?"),
        ("arms=[mha, mha]", "arms names mha twice"),
        ("data={kind: text}", "data.train is required"),
        ("model.num_attention_heads=3", "model.num_attention_heads: expected a divisor"),
    ],
)
def test_mistakes_name_the_override(path: Path, override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, [override])
    assert str(caught.value).startswith(f"--set {override}: ")
    assert message in str(caught.value)
