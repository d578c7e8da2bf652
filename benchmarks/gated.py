"""Correctness first, for benchmarks that time cases of ``wuneng.bench`` themselves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wuneng.bench.engine import Case


def gated(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """What the check of each case against its reference found, as bench.json's ``gates`` has it.

    Raises:
        RuntimeError: one failed, and nothing is to be timed.
    """
    found = []
    for case in cases:
        if case.gate is None:
            raise RuntimeError(f"{case.row.arm}: nothing to check it with")
        result = case.gate()
        if not result.passed:
            raise RuntimeError(f"{case.row.arm}: {result.sentence()}")
        found.append(result.to_json())
    return found
