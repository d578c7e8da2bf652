"""Regular expressions over parameters' names: what they find, and that they come to an end."""

from __future__ import annotations

import re
import time

import pytest
from torch import nn

from tests.train.tiny import tiny_training
from wuneng.errors import RecipeError
from wuneng.recipe import Training
from wuneng.train import name_patterns
from wuneng.train.name_patterns import names_found
from wuneng.train.optimizer import build_optimizer
from wuneng.train.trainable import check_patterns

NAMES = [
    f"model.layers.{layer}.{part}.weight"
    for layer in range(12)
    for part in ("attention.q_proj", "state_heads.r_proj", "mlp.up_proj")
]
PATTERNS = ["q_proj", r"layers\.1\.", r"\.\d+\.mlp", "(state|mlp)", "^model$", r"(?:\w+\.)+weight$"]
#: Each would try more ways through a name than there are atoms in it.
ENDLESS = ["(.+)+!", "(?:.|..)" * 24 + "!"]


def test_what_re_finds() -> None:
    found = names_found(PATTERNS, NAMES, "x")
    assert found == {p: [n for n in NAMES if re.search(p, n)] for p in PATTERNS}
    assert names_found([], NAMES, "x") == {}
    assert names_found(["é|\\d"], ["é", "1", "a"], "x") == {"é|\\d": ["é", "1"]}


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_patterns, "_SECONDS", 1)


@pytest.mark.parametrize("pattern", ENDLESS)
def test_an_endless_one_is_given_up(pattern: str, hurried: None) -> None:
    start = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        names_found(["q_proj", pattern], NAMES, "arms.a.train")
    assert time.monotonic() - start < 55
    assert str(caught.value).startswith("arms.a.train: expected regular expressions that are soon")
    assert repr(pattern)[:60] in str(caught.value)


def test_the_clock_ends_what_the_system_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_patterns, "_SECONDS", 1000)
    monkeypatch.setattr(name_patterns, "_PATIENCE", 3)
    with pytest.raises(RecipeError, match=re.escape("'(.+)+?!' is still being tried")):
        names_found(["(.+)+?!"], NAMES, "x")


def test_every_user_of_the_fields_gives_up(hurried: None) -> None:
    """``train`` of an arm goes the same way; ``wuneng train`` meets these before a run begins."""
    training = Training.model_validate(
        {"steps": 1, "learning_rates": {"(.+)+!": 2.0}}
    )  # as a recipe has it
    with pytest.raises(RecipeError, match=r"training\.learning_rates: .*\(\.\+\)\+!"):
        check_patterns({"a": training}, lambda arm: dict.fromkeys(NAMES, 1))
    model = nn.ModuleDict({"a_layer_of_some_long_name_or_other": nn.Linear(2, 2)})
    kinds = {name: "decay" for name, _ in model.named_parameters()}
    with pytest.raises(RecipeError, match=r"training\.learning_rates"):
        build_optimizer(model, tiny_training(learning_rates={"(.+)+!": 2.0}), kinds)


def test_the_first_pattern_that_is_found_counts() -> None:
    model = nn.ModuleDict({"ab": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    kinds = {name: "decay" for name, _ in model.named_parameters()}
    training = tiny_training(learning_rates={"ab|z": 3.0, "b.weight": 0.5})
    groups = build_optimizer(model, training, kinds).param_groups
    assert {g["learning_rate_scale"]: len(g["params"]) for g in groups} == {0.5: 1, 1.0: 3, 3.0: 2}
