"""One upgrade of a Llama, trained to its end once for all that looks at it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.train.small_upgrade import save_sources, train
from wuneng.train import Results

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("upgrade")
    save_sources(place)
    return place


@pytest.fixture(scope="session")
def finished(place: Path) -> Results:
    if importlib.util.find_spec("peft") is None:
        pytest.skip("needs peft")
    return train(place, place / "finished")[0]
