"""A run of text to look into, as the tests of evaluation have it."""

from __future__ import annotations

from tests.evaluate.conftest import text_run

__all__ = ["text_run"]
