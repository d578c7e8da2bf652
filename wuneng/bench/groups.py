"""What a benchmark measures, in groups of cases that are timed against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from wuneng.bench.architectures import Comparison
from wuneng.bench.engine import Case
from wuneng.bench.models import ModelStore, decode_case, prefill_case, train_case
from wuneng.bench.operators import OperatorShapes, operator_groups
from wuneng.bench.request import BenchRequest

__all__ = ["Group", "groups", "operator_shapes"]

_MODEL_CASES: dict[str, Callable[..., Case]] = {
    "prefill": prefill_case,
    "decode": decode_case,
    "train": train_case,
}


@dataclass
class Group:
    """Cases that are timed against each other, and their share of the time."""

    title: str
    cases: list[Case]
    weight: float


def groups(request: BenchRequest, comparison: Comparison, store: ModelStore) -> Iterator[Group]:
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
                yield Group(where, cases, 4 * length**0.5)


def operator_shapes(
    request: BenchRequest, comparison: Comparison, store: ModelStore, batch: int, length: int
) -> OperatorShapes:
    """Those of ``ops``: as many heads of the size that the first model's are, unless told."""
    config = comparison.architectures[0].config
    heads = request.heads or config.num_attention_heads or config.num_state_heads
    size = config.state_head_dim or config.head_dim or 64
    return OperatorShapes(batch, length, heads, size, store.dtype, store.dtype_name, store.device)


def _operator_groups(
    request: BenchRequest, comparison: Comparison, store: ModelStore, batch: int, length: int
) -> Iterator[Group]:
    shapes = operator_shapes(request, comparison, store, batch, length)
    config, heads, size = comparison.architectures[0].config, shapes.heads, shapes.size
    on_gpu = store.device.type == "cuda"
    alone = request.what == ("ops",)
    peers = [name for name in ("fla", "mamba", "wind") if on_gpu or name in (request.against or ())]
    for operation, cases in operator_groups(shapes, config, peers=peers, compiled=alone):
        title = f"ops, {operation}, {length} tokens, batch {batch}, {heads} heads of {size}"
        yield Group(title, cases, length**0.5)
