"""One measured record for many tests: building models is what takes the time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.bench.records import record_of
from wuneng.bench import architectures


@pytest.fixture(scope="session", autouse=True)
def _tiny_default_model() -> Iterator[None]:
    """The default model, smaller still."""
    with pytest.MonkeyPatch.context() as patch:
        tiny = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
        changed = {**architectures.DEFAULT_MODEL, **tiny}
        patch.setattr(architectures, "DEFAULT_MODEL", changed)
        yield


@pytest.fixture(scope="session")
def decode_record() -> Any:
    """Decoding, three arms, planted times."""
    return record_of()


@pytest.fixture(scope="session")
def full_record() -> Any:
    """Every kind of case, planted times."""
    # Little jitter: slopes of many series are checked, and a bound on all should not hang on draws.
    return record_of(jitter=0.005, what="ops,prefill,decode,train,parts")
