"""The correctness gate: a fixed tolerance, or a multiple of what the reference itself loses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from tests.model.small import small_model
from wuneng.bench import gate, model_gate
from wuneng.bench.gate import GateResult, judge
from wuneng.bench.operators import OperatorShapes, wkv7_inputs
from wuneng.bench.record import Row
from wuneng.bench.recurrence_gate import wkv7_oracle
from wuneng.ops import wkv7
from wuneng.ops.backend import asked

SHAPES = OperatorShapes(1, 40, 2, 32, torch.float32, "fp32", torch.device("cpu"))


def test_a_badly_conditioned_case_may_lose_what_its_reference_loses() -> None:
    row = Row("ops", "forward", "chunked", 40, 1, "fp32")
    asked = []

    def lost(share: float) -> Callable[[], dict[str, float]]:
        return lambda: asked.append(share) or {"y": share}  # type: ignore[func-returns-value]

    def judged(error: float, share: float) -> GateResult:
        return judge(row, {"y": error}, torch.float32, lost=lost(share))

    assert judged(5e-5, 1.0).passed
    assert not asked, "within the tolerance nothing more is computed"
    assert judged(3e-4, 1e-4).tolerance == pytest.approx(8e-4)
    assert not judged(3e-4, 1e-5).passed
    assert not judged(float("nan"), 1e-4).passed
    assert not judged(3e-4, float("nan")).passed


@pytest.mark.parametrize("backward", [False, True])
def test_the_gate_knows_what_the_loop_loses(
    backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tolerance of nothing, right passes by the loop's own loss and wrong does not."""
    monkeypatch.setattr(gate, "_TOLERANCE", {torch.float32: (0.0, 0.0)})
    monkeypatch.setattr(gate, "FACTOR", 32.0)
    oracle = wkv7_oracle(partial(wkv7_inputs, SHAPES, 0))
    row = Row("ops", "forward", "chunked", 40, 1, "fp32")

    def wrong(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return wkv7(r, w, k, v, a, 1.001 * b)

    assert oracle.judge(row, wkv7, backward=backward).passed
    assert not oracle.judge(row, wrong, backward=backward).passed


@pytest.mark.parametrize("kind", ["prefill", "decode", "gradient"])
def test_a_model_is_judged_by_what_its_reference_loses(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tolerated but the reference's own loss: the model passes, a changed one fails."""
    monkeypatch.setattr(gate, "_TOLERANCE", {torch.float32: (1e-12, 1e-12)})
    monkeypatch.setattr(gate, "FACTOR", 32.0)
    row = Row("model", kind, "wuneng", 40, 1, "fp32")
    model = small_model()

    def judged() -> GateResult:
        if kind == "gradient":
            return model_gate.gradient_gate(row, model, torch.float32)
        return getattr(model_gate, f"{kind}_gate")(row, model)  # type: ignore[no-any-return]

    assert judged().passed
    hook = model.model.norm.register_forward_hook(
        lambda _, args, out: out if asked() == "reference" else 1.01 * out
    )
    assert not judged().passed
    hook.remove()
