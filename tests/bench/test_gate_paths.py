"""The gates are red when any one fast path computes something else, each in turn, on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.model.small import small_model
from tests.ops.fast_paths import CPU_PATHS, FastPath, spoiled
from wuneng.bench import model_gate
from wuneng.bench.gate import GateResult
from wuneng.bench.operators import OperatorShapes, operator_groups
from wuneng.bench.record import Row
from wuneng.ops import native, using

HAS_COMPILER = native.library(16) is not None
GATES: dict[str, Any] = {
    "prefill": model_gate.prefill_gate,
    "decode": model_gate.decode_gate,
    "gradient": lambda row, model: model_gate.gradient_gate(row, model, torch.float32),
}
#: What ``wuneng bench ops`` times by itself.
IN_OPERATORS = {
    "state_head.native:_Call.forward",
    "state_head.native:_backward",
    "wkv7.chunked:forward_pass",
    "wkv7.chunked:backward_pass",
    "wkv7.interface:step",
    "cross_head.by_hand:_CrossHead.forward",
    "cross_head.by_hand:_CrossHead.backward",
    "cross_head.by_hand:forward",
    "cross_head.native_pass:_CrossHead.forward",
    "cross_head.native_pass:_backward",
}


def skip_without_compiler(path: FastPath) -> None:
    if path.compiled and not HAS_COMPILER:
        pytest.skip("no C compiler on this machine")


@pytest.mark.parametrize("path", CPU_PATHS, ids=str)
def test_gates_of_models(path: FastPath) -> None:
    skip_without_compiler(path)
    model = small_model(path.variant, hidden_size=64)
    if path.watched:
        for block in model.model.layers:
            block.state_heads.readout.register_forward_hook(lambda *_: None)
    row = Row("model", path.action, "wuneng", 40, 1, "fp32")

    def judged() -> GateResult:
        with using(path.backend) if path.backend else nullcontext():
            return GATES[path.action](row, model)  # type: ignore[no-any-return]

    assert judged().passed
    with spoiled(path):
        assert not judged().passed
    assert judged().passed


def test_every_path_that_operators_are_timed_by_is_listed() -> None:
    assert {path.where for path in CPU_PATHS} >= IN_OPERATORS


@pytest.mark.parametrize(
    "path", [path for path in CPU_PATHS if path.where in IN_OPERATORS], ids=str
)
def test_gates_of_operators(path: FastPath) -> None:
    skip_without_compiler(path)
    shapes = OperatorShapes(1, 40, 2, 16, torch.float32, "fp32", torch.device("cpu"))
    config = small_model(hidden_size=64).config
    groups = list(operator_groups(shapes, config, peers=(), compiled=False))
    cases = [case for _, group in groups for case in group]

    def red() -> set[tuple[str, str]]:
        results = [case.gate() for case in cases if case.gate is not None]
        return {(result.operation, result.arm) for result in results if not result.passed}

    assert not red()
    with spoiled(path):
        assert red()
