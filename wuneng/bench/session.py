"""One benchmark from request to record: lengths in turn, the shortest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from wuneng.bench import roofline
from wuneng.bench.answer import sentences
from wuneng.bench.architectures import Comparison, choose
from wuneng.bench.engine import Engine, torch_dtype
from wuneng.bench.exponents import growth
from wuneng.bench.forecast import foretell
from wuneng.bench.groups import groups as all_groups
from wuneng.bench.machine import Machine, clocks_mhz, load_average
from wuneng.bench.models import ModelStore
from wuneng.bench.parts import model_parts
from wuneng.bench.peers import peer_versions
from wuneng.bench.record import Row
from wuneng.bench.request import BenchRequest
from wuneng.bench.schema import SCHEMA_VERSION
from wuneng.bench.stopping import sigterm_interrupts, skipped
from wuneng.bench.timing import Clock, clock_for
from wuneng.device import environment, pick_device
from wuneng.errors import InputError

__all__ = ["run_benchmark"]

Notify = Callable[[str], None]


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
    began = time.perf_counter()
    device = pick_device(request.device)
    dtype_name, dtype = torch_dtype(request.dtype, device)
    if "cuda_graph" in request.training and device.type != "cuda":
        raise InputError(f"--training cuda_graph needs a CUDA device, got {device}")
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
        training = comparison.training | dict.fromkeys(request.training, True)
        store = ModelStore(device, dtype, dtype_name, training)
        engine = Engine(machine, chosen_clock, store.drop)
        with sigterm_interrupts():
            rows, stopped = _run_groups(request, comparison, store, engine, notify)
            parts = [] if stopped else _parts(request, comparison, store, notify, rows)
        machine.probe(chosen_clock)
        machine.clocks["end"] = clocks_mhz(device)
        machine.load = {"start": load_before, "end": load_average()}
    for row in rows:
        _against_final_rates(row, machine)
    record = {
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
        "took": {**engine.took, "in_all": time.perf_counter() - began},
    }
    return record | {"sentences": list(sentences(record))}


def _run_groups(
    request: BenchRequest,
    comparison: Comparison,
    store: ModelStore,
    engine: Engine,
    notify: Notify,
) -> tuple[list[Row], bool]:
    """All rows, and whether somebody stopped it; who does so before the first is measured gets
    KeyboardInterrupt."""
    groups = list(all_groups(request, comparison, store))
    total = sum(group.weight for group in groups)
    expected = foretell(request, comparison, store, engine, groups)
    if groups:
        notify(expected.sentence(engine.machine.device.type))
    rows: list[Row] = []
    last_what, began = None, time.perf_counter()
    for place, group in enumerate(groups):
        what = group.cases[0].row.what
        if last_what not in (None, what):
            engine.machine.probe(engine.clock)
            if what == "train":
                store.drop()  # inference's copies of the models
        notify(group.title + expected.reached(place, time.perf_counter() - began))
        try:
            rows += engine.run(group.cases, request.seconds * group.weight / total)
        except KeyboardInterrupt:
            if not rows:
                raise
            notify("stopped: what was measured so far is kept")
            rows += skipped(case.row for left in groups[place:] for case in left.cases)
            store.drop()
            return rows, True
        last_what = what
    store.drop()
    return rows, False


def _parts(
    request: BenchRequest,
    comparison: Comparison,
    store: ModelStore,
    notify: Notify,
    rows: list[Row],
) -> list[dict[str, Any]]:
    if "parts" not in request.what:
        return []
    notify("parts of a training step and of a decoded token")
    own = [a for a in comparison.architectures if not a.is_peer]
    try:
        return model_parts(store, own, request.batches[0], request.seq_lens)
    except KeyboardInterrupt:
        if not rows:
            raise
        notify("stopped: what was measured so far is kept")
        return []


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
