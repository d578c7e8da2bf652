"""Time by part of the model, from what torch's profiler recorded.

An operation of the forward pass belongs to the part whose module was running; one of the backward
pass belongs to the forward operation that it differentiates (autograd numbers both alike). What is
left is the loss, the optimiser and the rest of the step. On CUDA the time of the kernels that an
operation starts is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import record_function

__all__ = ["DATA", "PREFIX", "REST", "PartTimes", "labelled", "part_of_module", "times_by_part"]

#: Which module's operations belong to which part; the innermost module decides.
_PARTS = {
    "embed_tokens": "embedding",
    "self_attn": "attention",
    "state_heads": "state heads",
    "cross_head": "middle heads",
    "mlp": "feed-forward",
    "lm_head": "output",
}
#: Of the names under which parts are announced to the profiler.
PREFIX = "part: "
DATA = "data"
REST = "loss and rest"
OPTIMIZER = "optimiser"
BLOCKS = "norms and residuals"


@dataclass
class PartTimes:
    """Seconds, and operations dispatched."""

    forward: float = 0.0
    backward: float = 0.0
    operations: int = 0


@contextmanager
def labelled(model: nn.Module) -> Iterator[None]:
    """While inside, modules announce their part to the profiler."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            part = part_of_module(name)
            if part is not None:
                _announce(module, part, stack)
        yield


def part_of_module(name: str) -> str | None:
    """The part to which a module of a model belongs, by its qualified name; None: that of the
    module around it."""
    leaf = name.rpartition(".")[2]
    if name.startswith("model.layers.") and leaf.isdigit():
        return BLOCKS
    return _PARTS.get(leaf)


def _announce(module: nn.Module, part: str, stack: ExitStack) -> None:
    running: list[Any] = []

    def before(module: nn.Module, inputs: Any) -> None:
        running.append(record_function(PREFIX + part))
        running[-1].__enter__()

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop().__exit__(None, None, None)

    for handle in (
        module.register_forward_pre_hook(before),
        module.register_forward_hook(after),
    ):
        stack.callback(handle.remove)


def times_by_part(events: Sequence[Any], *, on_cuda: bool) -> dict[str, PartTimes]:
    """What each part took, of the ``events`` of a profile; parts that took nothing are left out."""
    parts_of = _forward_parts(events)
    times: dict[str, PartTimes] = defaultdict(PartTimes)
    for event in events:
        if event.device_type != torch.autograd.DeviceType.CPU:
            continue
        name, backward = _place(event, parts_of)
        of_device = on_cuda and name != DATA  # waiting for a batch is the processor's
        microseconds = event.self_device_time_total if of_device else event.self_cpu_time_total
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
        if outer.name.startswith(PREFIX):
            return str(outer.name).removeprefix(PREFIX)
        outer = outer.cpu_parent
    return None
