"""A command that is printed can be pasted, whatever the places are called."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from wuneng.errors import ModelError
from wuneng.records import find_model
from wuneng.train.signals import how_to_resume
from wuneng_cli.train import _next

PLACES = ["runs/a", "my runs/a", "it's; rm -rf x", "$(x)"]


def words(text: str, after: str) -> list[str]:
    """Those of the shell, of the command in ``text`` that begins with ``after``."""
    command = text[text.index(after) :].partition("`")[0]
    return shlex.split(command)


@pytest.mark.parametrize("place", PLACES)
def test_how_to_go_on(place: str) -> None:
    assert words(how_to_resume(Path(place)), "wuneng train") == [
        *("wuneng", "train", f"{place}/recipe.yaml", "--resume", place)
    ]
    record = {"arms": {"a": {"kind": "hybrid"}}}
    results = cast(Any, SimpleNamespace(directory=Path(place), record=record))
    for kind in ("text", "synthetic"):
        for command in _next(results, kind):
            assert shlex.split(command)[2] == place


@pytest.mark.parametrize("place", PLACES)
def test_what_to_convert_first(place: str, tmp_path: Path) -> None:
    from wuneng.evaluate.loading import without_tokenizer
    from wuneng.train.starting_point import OwnModels

    file = tmp_path / place / "my model.pth"
    file.parent.mkdir(parents=True)
    file.touch()
    for given in (file, file.parent):
        with pytest.raises(ModelError) as caught:
            find_model(given)
        assert words(str(caught.value), "wuneng convert")[2:4] == [str(file), "my model"]
    (file.parent / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError) as caught:
        OwnModels().config(str(file.parent), cast(Any, None))
    assert words(str(caught.value), "wuneng convert")[2:] == [str(file.parent), "DIRECTORY"]
    model = tmp_path / place / "run" / "arm" / "model"
    model.mkdir(parents=True)
    (model.parents[1] / "recipe.yaml").touch()
    assert words(without_tokenizer(model), "wuneng eval")[2:] == [str(model.parents[1])]


def test_an_rwkv7_to_start_from(tmp_path: Path) -> None:
    from wuneng.convert.upgrade import _located

    (tmp_path / "a b.pth").touch()
    with pytest.raises(ModelError) as caught:
        _located(str(tmp_path / "a b.pth"))
    assert words(str(caught.value), "wuneng convert")[2:] == [
        *(str(tmp_path / "a b.pth"), "DIRECTORY")
    ]
