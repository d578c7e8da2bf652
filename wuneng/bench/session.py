"""One benchmark from request to record: lengths in turn, the shortest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from wuneng.bench import roofline
from wuneng.bench.architectures import Comparison, choose
from wuneng.bench.engine import Case, Engine, torch_dtype
from wuneng.bench.exponents import growth
from wuneng.bench.machine import Machine, clocks_mhz, load_average
from wuneng.bench.models import ModelStore, decode_case, prefill_case, train_case
from wuneng.bench.operators import OperatorShapes, operator_groups
from wuneng.bench.parts import model_parts
from wuneng.bench.peers import peer_versions
from wuneng.bench.record import Row
from wuneng.bench.request import BenchRequest
from wuneng.bench.schema import SCHEMA_VERSION
from wuneng.bench.timing import Clock, clock_for
from wuneng.device import environment, pick_device

__all__ = ["run_benchmark"]

Notify = Callable[[str], None]
_MODEL_CASES: dict[str, Callable[..., Case]] = {
    "prefill": prefill_case,
    "decode": decode_case,
    "train": train_case,
}


@dataclass
class _Group:
    """Cases that are timed against each other, and their share of the time."""

    title: str
    cases: list[Case]
    weight: float


def run_benchmark(
    request: BenchRequest,
    *,
    command_line: Sequence[str] = (),
    notify: Notify = lambda message: None,
    clock: Clock | None = None,
) -> dict[str, Any]:
    """Measure what is asked for.

    Args:
        notify: gets a line for each group of cases, when it starts.
        clock: in the place of the device's own, for tests.

    Returns:
        The record that bench.json holds.

    Raises:
        InputError: the device, dtype, preset, arm or model is unknown or not available.
    """
    device = pick_device(request.device)
    dtype_name, dtype = torch_dtype(request.dtype, device)
    comparison = choose(request)
    for arm, reason in comparison.left_out.items():
        notify(f"{arm} is left out: {reason}")
    record_environment = environment(command_line)
    with _threads(request.threads):
        chosen_clock = clock or clock_for(device)
        load_before = load_average()
        machine = Machine(device, dtype)
        machine.probe(chosen_clock)
        machine.clocks["start"] = clocks_mhz(device)
        store = ModelStore(device, dtype, dtype_name, comparison.training)
        engine = Engine(machine, chosen_clock, store.drop)
        rows = _run_groups(request, comparison, store, engine, notify)
        parts: list[dict[str, Any]] = []
        if "parts" in request.what:
            notify("parts of a training step and of a decoded token")
            own = [a for a in comparison.architectures if not a.is_peer]
            parts = model_parts(store, own, request.batches[0], request.seq_lens)
        machine.probe(chosen_clock)
        machine.clocks["end"] = clocks_mhz(device)
        machine.load = {"start": load_before, "end": load_average()}
    for row in rows:
        _against_final_rates(row, machine)
    return {
        "schema": SCHEMA_VERSION,
        "request": request.to_json(),
        "environment": record_environment,
        "machine": machine.to_json(),
        "model": comparison.name,
        "models": {a.arm: a.to_json() for a in comparison.architectures},
        "left_out": comparison.left_out,
        "peers": peer_versions(),
        "gates": [result.to_json() for result in engine.gates],
        "rows": [row.to_json() for row in rows],
        "exponents": growth(rows),
        "parts": parts,
        "roofline": roofline.describe(machine.rates),
    }


def _run_groups(
    request: BenchRequest,
    comparison: Comparison,
    store: ModelStore,
    engine: Engine,
    notify: Notify,
) -> list[Row]:
    groups = list(_groups(request, comparison, store))
    total = sum(group.weight for group in groups)
    rows = []
    last_what = None
    for group in groups:
        what = group.cases[0].row.what
        if last_what not in (None, what):
            engine.machine.probe(engine.clock)
            if what == "train":
                store.drop()  # inference's copies of the models
        notify(group.title)
        rows += engine.run(group.cases, request.seconds * group.weight / total)
        last_what = what
    store.drop()
    return rows


def _groups(request: BenchRequest, comparison: Comparison, store: ModelStore) -> Iterator[_Group]:
    """All groups, in the order in which they are measured."""
    for what in ("ops", "prefill", "decode", "train"):
        if what not in request.what:
            continue
        for batch in request.batches:
            for length in request.seq_lens:
                where = f"{what}, {length} tokens, batch {batch}"
                if what == "ops":
                    yield from _operator_groups(request, comparison, store, batch, length)
                    continue
                make = _MODEL_CASES[what]
                cases = [make(store, a, batch, length) for a in comparison.architectures]
                yield _Group(where, cases, 4 * length**0.5)


def _operator_groups(
    request: BenchRequest, comparison: Comparison, store: ModelStore, batch: int, length: int
) -> Iterator[_Group]:
    config = comparison.architectures[0].config
    heads = request.heads or config.num_attention_heads or config.num_state_heads
    size = config.state_head_dim or config.head_dim or 64
    shapes = OperatorShapes(batch, length, heads, size, store.dtype, store.dtype_name, store.device)
    on_gpu = store.device.type == "cuda"
    alone = request.what == ("ops",)
    peers = [name for name in ("fla", "mamba") if on_gpu or name in (request.against or ())]
    for operation, cases in operator_groups(shapes, config, peers=peers, compiled=alone):
        title = f"ops, {operation}, {length} tokens, batch {batch}, {heads} heads of {size}"
        yield _Group(title, cases, length**0.5)


def _against_final_rates(row: Row, machine: Machine) -> None:
    """Shares of the roof, once the rates have been measured a second time."""
    if row.median_ms is None or row.flops is None or row.bytes is None:
        return
    work, rates = roofline.Work(row.bytes, row.flops), machine.rates
    seconds = row.median_ms / 1000
    row.bound = work.bound(rates)
    row.roofline_share = work.floor_seconds(rates) / seconds
    row.mfu = work.flops / seconds / rates.matmul


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
