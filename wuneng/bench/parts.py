"""Where a training step and a decoded token spend their time, by part of the model, as
:mod:`wuneng.model.time_by_part` tells it from torch's profiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from wuneng.model.time_by_part import PartTimes, labelled, times_by_part

if TYPE_CHECKING:
    from wuneng.bench.architectures import Architecture
    from wuneng.bench.models import ModelStore

__all__ = ["model_parts"]


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


def _entries(
    what: str, arm: str, batch: int, tokens: int, times: dict[str, PartTimes]
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


def _times(call: Any, model: nn.Module, device: torch.device) -> dict[str, PartTimes]:
    """One profiled call, after one that is not."""
    call(0)
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with labelled(model), profile(activities=activities, acc_events=True) as done:
        call(1)
        if on_cuda:
            torch.cuda.synchronize(device)
    return times_by_part(list(done.events() or []), on_cuda=on_cuda)
