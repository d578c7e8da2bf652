"""What ``benchmarks.gated`` lets through."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gated import gated
from wuneng.bench.gate import GateResult


def case(passed: bool | None) -> Any:
    result = GateResult("train", "step", "mha", 8, 0.5, 0.1, bool(passed), "weight")
    return SimpleNamespace(
        row=SimpleNamespace(arm="mha"), gate=None if passed is None else lambda: result
    )


def test_what_passes_is_recorded() -> None:
    assert [(one["arm"], one["passed"]) for one in gated([case(True)])] == [("mha", True)]


@pytest.mark.parametrize(
    ("passed", "said"), [(False, "mha: differs from the reference by 5.0e-01"), (None, "nothing")]
)
def test_what_is_wrong_or_unchecked_is_not_timed(passed: bool | None, said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        gated([case(True), case(passed)])
