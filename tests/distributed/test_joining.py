"""Meeting the others through the store that a launcher keeps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from wuneng.distributed.joining import joined
from wuneng.distributed.launched import Launched
from wuneng.errors import MissingProcess


def test_those_of_an_earlier_attempt_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun's store outlives a restart: a process that met the killed waited without end."""
    store = dist.HashStore()

    def rendezvous(*_: Any, **__: Any) -> Iterator[Any]:
        yield store, 0, 2

    monkeypatch.setattr(dist, "rendezvous", rendezvous)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: pytest.fail("met nobody"))
    before, after = (Launched(0, 2, 0, 2, restarts=attempt) for attempt in (0, 1))
    for key in ("who/1", "attempt/0/who/1"):
        store.set(key, "a process that was killed since")
    with (
        pytest.raises(MissingProcess, match="process 1 of 2 did not start"),
        joined(after, "cpu", 0.1),
    ):
        pass
    with pytest.raises(pytest.fail.Exception, match="met nobody"), joined(before, "cpu", 0.1):
        pass
