"""Small corpora in temporary directories; nothing here may reach for the network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from wuneng.recipe.data import TextData
from wuneng.recipe.training import EndEvaluation, Training

WORDS = ["the", "state", "of", "a", "head", "is", "carried", "over", "every", "token", "so", "far"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A token cache of its own for every test, found through the environment."""
    place = tmp_path / "cache"
    monkeypatch.setenv("WUNENG_CACHE", str(place))
    return place


@pytest.fixture(scope="session", autouse=True)
def _datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What `datasets` keeps goes to a temporary directory, not to the user's."""
    import datasets.config

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield
    patch.undo()


@pytest.fixture
def stories() -> list[str]:
    """60 different documents of 1 to 60 words, some with letters beyond ASCII."""
    return [
        " ".join(WORDS[(i + j * j) % len(WORDS)] for j in range(i + 1)) + f" é{i}\n"
        for i in range(60)
    ]


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Writes documents to a .jsonl file in the temporary directory."""

    def write(name: str, documents: list[str]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        return path

    return write


def text_data(**fields: Any) -> TextData:
    """Text settings as a recipe would give them."""
    return TextData.model_validate({"kind": "text", **fields})


def training(**fields: Any) -> Training:
    """A short run on short sequences."""
    return Training.model_validate({"steps": 5, "batch_size": 4, "sequence_length": 16, **fields})


def evaluation(**fields: Any) -> EndEvaluation:
    """The end evaluation, with its defaults."""
    return EndEvaluation.model_validate(fields)


@pytest.fixture
def settings() -> Any:
    """Makers of settings: ``settings.text(...)``, ``.training(...)``, ``.evaluation(...)``."""

    class Makers:
        text = staticmethod(text_data)
        training = staticmethod(training)
        evaluation = staticmethod(evaluation)

    return Makers
