"""Models and tokenizers by their names on the hub, while it does not answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets.config
import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants

from wuneng.convert.source import locate
from wuneng.data.tokenizer import byte_tokenizer, load_tokenizer
from wuneng.errors import DataError, ModelError, WuNengError

NAME = "somebody/model-of-theirs"


class Hub:
    """Fails so many times, then gives what it is asked for; keeps how long was waited."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.failures, self.waits, self.answer = 0, [], None  # type: tuple[int, list[float], Any]
        self.failure: Exception = ConnectionError("no route to host")
        patch.setattr("wuneng.hub.connection.time.sleep", self.waits.append)
        for told in (constants, datasets.config):
            patch.setattr(told, "HF_HUB_OFFLINE", False)
        patch.setattr(huggingface_hub, "snapshot_download", self.asked)
        patch.setattr(transformers.AutoTokenizer, "from_pretrained", self.asked)

    def asked(self, *_: Any, **__: Any) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            # As transformers puts it: an error of files, because of one of the connection.
            raise OSError(f"We couldn't connect to the hub to load {NAME}") from self.failure
        return self.answer


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def of_a_tokenizer() -> object:
    return load_tokenizer(NAME)


def of_a_model() -> object:
    return locate(NAME).path


@pytest.mark.parametrize(("load", "error"), [(of_a_tokenizer, DataError), (of_a_model, ModelError)])
def test_a_name_is_asked_for_again(
    hub: Hub, tmp_path: Path, load: Callable[[], object], error: type[WuNengError]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    hub.answer = byte_tokenizer() if load is of_a_tokenizer else tmp_path
    hub.failures = 2
    assert load() == hub.answer
    assert hub.waits == [1, 2]
    hub.failures, hub.waits[:] = 99, []
    with pytest.raises(error, match=NAME):
        load()
    assert hub.waits == [1, 2, 4], "not as long as for data: it may be a directory mistyped"


@pytest.mark.parametrize("load", [of_a_tokenizer, of_a_model])
def test_what_waiting_does_not_mend_is_said_at_once(
    hub: Hub, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.failures, hub.failure = 99, FileNotFoundError("no such repository")
    with pytest.raises(WuNengError):
        load()
    hub.failure = ConnectionError("no route to host")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WuNengError):
        load()
    assert hub.waits == []


@pytest.mark.parametrize("load", [of_a_tokenizer, of_a_model])
def test_a_client_that_has_tried_long_enough_is_not_asked_again(
    hub: Hub, load: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client waits for half a minute and more over some questions."""
    hub.failures = 99
    clock = iter(range(0, 1000, 30))
    monkeypatch.setattr("wuneng.hub.connection.time.monotonic", lambda: next(clock))
    with pytest.raises(WuNengError):
        load()
    assert hub.waits == []
