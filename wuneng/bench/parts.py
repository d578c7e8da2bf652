"""Where a training step and a decoded token spend their time, by part of the model.

torch's profiler records every operation. An operation of the forward pass belongs to the part
whose module was running; one of the backward pass belongs to the forward operation that it
differentiates (autograd numbers both alike). What is left is the loss, the optimiser and the rest
of the step. On CUDA the time of the kernels that an operation starts is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

if TYPE_CHECKING:
    from wuneng.bench.architectures import Architecture
    from wuneng.bench.models import ModelStore

__all__ = ["model_parts"]

#: Which module's operations belong to which part; the innermost module decides.
_PARTS = {
    "embed_tokens": "embedding",
    "self_attn": "attention",
    "state_heads": "state heads",
    "cross_head": "middle heads",
    "mlp": "feed-forward",
    "lm_head": "output",
}
_PREFIX = "part: "
REST = "loss and rest"
OPTIMIZER = "optimiser"
BLOCKS = "norms and residuals"


def model_parts(
    store: ModelStore,
    architectures: Sequence[Architecture],
    batch: int,
    seq_lens: Sequence[int],
) -> list[dict[str, Any]]:
    """One entry for each use (train, decode), length, arm and part.

    ``forward_ms``, ``backward_ms``, their ``share`` of the step, and how many ``operations`` were
    dispatched. The profiler's own cost is in these times: read shares, not sums.
    """
    from wuneng.bench.models import decode_case, train_case

    entries = []
    for tokens in seq_lens:
        for architecture in architectures:
            ready = train_case(store, architecture, batch, tokens).prepare()
            model = store.trainee(architecture).model
            times = _times(ready.call, model, store.device)
            entries += _entries("train", architecture.arm, batch, tokens, times)
    store.drop()
    for tokens in seq_lens:
        for architecture in architectures:
            ready = decode_case(store, architecture, batch, tokens, graph=False).prepare()
            times = _times(ready.call, store.inference(architecture), store.device)
            entries += _entries("decode", architecture.arm, batch, tokens, times)
    return entries


@dataclass
class _PartTimes:
    """Seconds, and operations dispatched."""

    forward: float = 0.0
    backward: float = 0.0
    operations: int = 0


def _entries(
    what: str, arm: str, batch: int, tokens: int, times: dict[str, _PartTimes]
) -> list[dict[str, Any]]:
    total = sum(part.forward + part.backward for part in times.values())
    return [
        {
            "what": what,
            "arm": arm,
            "seq_len": tokens,
            "batch": batch,
            "part": name,
            "forward_ms": 1000 * part.forward,
            "backward_ms": 1000 * part.backward,
            "share": (part.forward + part.backward) / total,
            "operations": part.operations,
        }
        for name, part in sorted(times.items())
    ]


@contextmanager
def _labelled(model: nn.Module) -> Iterator[None]:
    """While inside, modules announce their part to the profiler."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            leaf = name.rpartition(".")[2]
            part = (
                BLOCKS if name.startswith("model.layers.") and leaf.isdigit() else _PARTS.get(leaf)
            )
            if part is not None:
                _announce(module, part, stack)
        yield


def _announce(module: nn.Module, part: str, stack: ExitStack) -> None:
    running: list[Any] = []

    def before(module: nn.Module, inputs: Any) -> None:
        running.append(record_function(_PREFIX + part))
        running[-1].__enter__()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    for handle in (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ):
        stack.callback(handle.remove)


def _times(call: Any, model: nn.Module, device: torch.device) -> dict[str, _PartTimes]:
    """One profiled call, after one that is not."""
    call(0)
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with _labelled(model), profile(activities=activities, acc_events=True) as done:
        call(1)
        if on_cuda:
            torch.cuda.synchronize(device)
    events = list(done.events() or [])
    parts_of = _forward_parts(events)
    times: dict[str, _PartTimes] = defaultdict(_PartTimes)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        name, backward = _place(event, parts_of)
        part = times[name]
        if backward:
            part.backward += microseconds / 1e6
        else:
            part.forward += microseconds / 1e6
        part.operations += event.name.startswith("aten::")
    return {name: part for name, part in times.items() if part.forward + part.backward > 0}


def _forward_parts(events: Sequence[Any]) -> dict[int, str]:
    """Autograd's number of every forward operation -> its part."""
    parts: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not _is_backward(event):
            part = _enclosing_part(event)
            if part is not None:
                parts.setdefault(event.sequence_nr, part)
    return parts


def _place(event: Any, parts_of: dict[int, str]) -> tuple[str, bool]:
    """The part of an operation, and whether it is of the backward pass."""
    part = _enclosing_part(event)
    if part is not None:
        return part, False
    outer: Any = event
    while outer is not None:
        if outer.name.startswith("autograd::engine"):
            return parts_of.get(outer.sequence_nr, REST), True
        if outer.name.startswith("Optimizer."):
            return OPTIMIZER, False
        outer = outer.cpu_parent
    return REST, False


def _is_backward(event: Any) -> bool:
    outer: Any = event
    while outer is not None:
        if outer.name.startswith("autograd::engine"):
            return True
        outer = outer.cpu_parent
    return False


def _enclosing_part(event: Any) -> str | None:
    outer: Any = event
    while outer is not None:
        if outer.name.startswith(_PREFIX):
            return str(outer.name).removeprefix(_PREFIX)
        outer = outer.cpu_parent
    return None
