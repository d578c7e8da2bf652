"""Groups of cases: what fails is told in its row, and the rest goes on."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from tests.bench.records import PlantedClock
from wuneng.bench.engine import Case, Engine, Missing, Prepared
from wuneng.bench.gate import GateResult
from wuneng.bench.machine import Machine, Probe, Rates
from wuneng.bench.memory import as_out_of_memory, peak_bytes
from wuneng.bench.operators import OperatorShapes, wkv7_inputs
from wuneng.bench.record import Row
from wuneng.bench.recurrence_gate import wkv7_oracle
from wuneng.bench.roofline import Work
from wuneng.ops import wkv7

CPU = torch.device("cpu")
MIB = 2**20


def engine(available: int = 2**40) -> Engine:
    rates = Rates(bandwidth=1e9, matmul=1e10)
    machine = Machine(CPU, torch.float32, [Probe(best=rates, typical=rates)])
    return Engine(machine, PlantedClock(0), lambda: None, available=lambda: available)


def case(arm: str, length: int = 64, **changes: Any) -> Case:
    def allocate(index: int) -> Any:
        return torch.empty(length * 1024, dtype=torch.uint8)

    fields: dict[str, Any] = {
        "tokens": length,
        "work": Work(bytes=1e7, flops=1e7),
        "prepare": lambda: Prepared(allocate, held_bytes=MIB),
    }
    return Case(Row("decode", "next token", arm, length, 1, "fp32"), **{**fields, **changes})


def test_ratios_are_of_the_rounds() -> None:
    """wuneng takes twice as long; the machine halves its speed midway, for both."""
    runner = engine()

    class Throttled(PlantedClock):
        def seconds(self, name: str, call: Any, first: int, repeats: int) -> float:
            slow = 2.0 if len(self.order) > 30 else 1.0
            return slow * super().seconds(name, call, first, repeats)

    runner.clock = Throttled(0, {"wuneng": 2.0})
    rows = runner.run([case("wuneng"), case("mha")], seconds=10.0)
    assert [row.speed_ratio_against for row in rows] == ["mha", "mha"]
    assert rows[0].speed_ratio == pytest.approx(0.5, rel=0.03)
    assert (rows[1].speed_ratio, rows[1].speed_ratio_spread) == (1.0, 0.0)


def raising(error: Exception) -> Any:
    def prepare() -> Prepared:
        raise error

    return prepare


def test_a_row_by_hand() -> None:
    (row,) = engine().run([case("mha")], seconds=1.0)
    assert row.status == "ok"
    assert row.median_ms == pytest.approx(10.0, rel=0.05)
    assert row.tokens_per_second == pytest.approx(64 / 0.01, rel=0.05)
    assert row.peak_bytes == MIB + 64 * 1024
    assert (row.bound, row.samples) == ("memory", 25)
    assert row.roofline_share == pytest.approx(1.0, rel=0.05)  # 1e7 bytes at 1e9 a second


def test_out_of_memory_is_a_row_and_the_rest_goes_on() -> None:
    message = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    full = case("big", prepare=raising(RuntimeError(message + "4096 bytes. Error code 12")))
    rows = engine().run([full, case("mha")], seconds=0.1)
    assert [row.status for row in rows] == ["out of memory", "ok"]
    assert rows[0].needed_bytes == 4096
    assert rows[0].median_ms is None


def test_what_does_not_fit_beside_the_others_is_tried_alone() -> None:
    tries: list[int] = []

    def prepare() -> Prepared:
        tries.append(1)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return Prepared(lambda index: None, held_bytes=0)

    rows = engine().run([case("mha"), case("big", prepare=prepare)], seconds=0.1)
    assert [row.status for row in rows] == ["ok", "ok"]
    assert "timed alone" in rows[1].note


def test_a_length_that_will_not_fit_is_not_started() -> None:
    """At 64 tokens a call takes 64 KiB beside 1 MiB held; at 64k it would take 64 MiB."""
    runner = engine(available=32 * MIB)
    started: list[int] = []

    def prepare() -> Prepared:
        started.append(1)
        return Prepared(lambda index: None, 0)

    runner.run([case("mha")], seconds=0.1)
    (row,) = runner.run([case("mha", length=64 * 1024, prepare=prepare)], seconds=0.1)
    assert (row.status, row.needed_bytes) == ("out of memory", 65 * MIB)
    assert not started


def test_weights_that_will_not_fit_are_not_built() -> None:
    (row,) = engine(available=MIB).run([case("7b", estimated_bytes=28 * 2**30)], 0.1)
    assert (row.status, row.needed_bytes) == ("out of memory", 28 * 2**30)


def test_a_red_gate_has_no_speed() -> None:
    red = GateResult("decode", "next token", "wrong", 64, 0.5, 1e-4, False, "logits")
    prepared: list[int] = []
    wrong = case("wrong", gate=lambda: red, prepare=lambda: prepared.append(1))
    runner = engine()
    rows = runner.run([wrong, case("mha")], seconds=0.1)
    assert rows[0].status == "gate failed"
    assert "5.0e-01" in rows[0].note
    assert (rows[0].median_ms, rows[0].tokens_per_second, rows[0].peak_bytes) == (None,) * 3
    assert rows[1].status == "ok"
    assert runner.gates == [red]
    assert not prepared


def test_missing_peers_are_named() -> None:
    (row,) = engine().run([case("fla", prepare=raising(Missing("fla is not installed")))], 0.1)
    assert (row.status, row.note) == ("missing", "fla is not installed")


def test_other_errors_are_told_with_their_kind() -> None:
    rows = engine().run([case("mha", prepare=raising(KeyError("bug"))), case("wuneng")], 0.1)
    assert [row.status for row in rows] == ["failed", "ok"]
    assert rows[0].note == "KeyError: 'bug'"
    assert as_out_of_memory(RuntimeError("shape mismatch")) is None


def test_peak_of_temporary_tensors() -> None:
    def call() -> None:
        first = torch.empty(1000, dtype=torch.uint8)
        second = torch.empty(500, dtype=torch.uint8)
        del first, second
        torch.empty(800, dtype=torch.uint8)

    assert peak_bytes(call, CPU) == 1500


def test_the_peak_does_not_wait_for_a_table_of_all_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Making it took a token loop of 512 tokens half a minute, nine tenths of its warm-up."""

    def parsed(*_: Any) -> Any:
        raise AssertionError("operations were looked at")

    monkeypatch.setattr(torch.autograd.profiler.profile, "_parse_kineto_results", parsed)
    assert peak_bytes(lambda: torch.empty(300, dtype=torch.uint8), CPU) == 300


SHAPES = OperatorShapes(1, 40, 2, 32, torch.float32, "fp32", CPU)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("tokens", [40, 600])
def test_the_gate_passes_right_and_stops_wrong_operators(tokens: int, backward: bool) -> None:
    """600 tokens are above the limit for element-wise gradients."""
    oracle = wkv7_oracle(partial(wkv7_inputs, SHAPES, 0, tokens))
    row = Row("ops", "forward", "chunked", tokens, 1, "fp32")

    def wrong(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return wkv7(r, w, k, v, a, 1.02 * b)

    right = oracle.judge(row, wkv7, backward=backward)
    assert right.passed, right
    assert right.error < 1e-5
    assert not oracle.judge(row, wrong, backward=backward).passed


def test_the_gate_stops_wrong_gradients_of_right_outputs() -> None:
    def wrong(r: Any, w: Any, k: Any, v: Any, a: Any, b: Any) -> Any:
        return wkv7(r, w, k, v, a, b + 0.5 * (b - b.detach()))

    row = Row("ops", "forward+backward", "wrong", 600, 1, "fp32")
    for tokens in (40, 600):
        oracle = wkv7_oracle(partial(wkv7_inputs, SHAPES, 0, tokens))
        assert oracle.judge(row, wrong, backward=False).passed
        assert not oracle.judge(row, wrong, backward=True).passed
