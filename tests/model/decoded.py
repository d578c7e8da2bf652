"""Which calls of a model went through all layers in one call of C."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from wuneng.model import modeling


@contextmanager
def counted() -> Iterator[list[bool]]:
    """Of each call of a model whether the one call took it."""
    taken: list[bool] = []
    right = modeling.decoded_token

    def noted(*arguments: Any) -> Any:
        out = right(*arguments)
        taken.append(out is not None)
        return out

    with mock.patch.object(modeling, "decoded_token", noted):
        yield taken
