"""What an upgrade cannot be is said before a step."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.train.small_upgrade import train
from wuneng.errors import InputError, ModelError, RecipeError

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


ONE_ARM = "arms={wuneng: {}}"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (["model.hidden_size=64"], RecipeError, r"model.hidden_size is 64, .*llama has 48"),
        (["model.rope_theta=5"], RecipeError, "model.rope_theta is 5.0, .*llama has 10000.0"),
        (["model.num_state_heads=3"], RecipeError, r"arms.wuneng: .*llama: cross_head 'gated'"),
        (["training.sequence_length=129"], RecipeError, "expected at most 128, the max_position"),
        (["train=[layer.9]"], RecipeError, r"arms.wuneng.train: 'layer.9' is found in no"),
        (["training.learning_rates={x_y: 2}"], RecipeError, "learning_rates: 'x_y' is found in no"),
        (["init_from=nowhere/else/at/all"], ModelError, "nowhere/else/at/all does not exist"),
        (["data.tokenizer=source"], InputError, "init_from: directory .*llama holds no tokenizer"),
    ],
)
def test_what_does_not_fit_stops_before_training(
    place: Path, tmp_path: Path, changes: list[str], error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        train(place, tmp_path / "run", ONE_ARM, *changes)
    assert not (tmp_path / "run" / "wuneng").exists()


def test_a_llama_needs_the_converter(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is a llama; .*wuneng convert"):
        train(place, tmp_path / "run", ONE_ARM, sources=None)


def test_a_missing_peft_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "peft" else found(name)
    )
    with pytest.raises(InputError, match=r"pip install 'wuneng\[lora\]'"):
        train(place, tmp_path / "run")
