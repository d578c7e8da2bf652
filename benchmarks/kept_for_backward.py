"""What a training step keeps for its backward pass, by part of the model.

    python -m benchmarks.kept_for_backward --out benchmarks/kept_for_backward.json

The model is ``benchmarks/cpu.yaml`` and the step training's own, of the arms of
:mod:`benchmarks.training_step`. A part is that of the innermost module that was running when
autograd saved a tensor. A memory that several tensors share counts once, whole, for the part that
saved it first; parameters do not count. No time is measured: a busy machine gives the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.training_step import MODEL
from wuneng.bench.architectures import choose
from wuneng.bench.models import ModelStore, train_case
from wuneng.bench.request import BenchRequest
from wuneng.device import environment
from wuneng.model.time_by_part import REST, part_of_module
from wuneng.records import write_json

ARMS = ("mha", "replace")


class Kept:
    """While inside, the memory that autograd saves, by part of ``model``."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parts: dict[int, str] = {}
        #: Held, so that no address is given out twice meanwhile.
        self._storages: dict[int, Any] = {}
        self._own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self._running = [REST]
        self._stack = ExitStack()

    def bytes(self) -> dict[str, int]:
        """By part, those that keep most first."""
        found: Counter[str] = Counter()
        for address, part in self.parts.items():
            found[part] += self._storages[address].nbytes()
        return dict(found.most_common())

    def __enter__(self) -> Kept:
        for name, module in self.model.named_modules():
            part = part_of_module(name)
            if part is not None:
                self._announce(module, part)
        self._stack.enter_context(saved_tensors_hooks(self._saved, lambda tensor: tensor))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _announce(self, module: nn.Module, part: str) -> None:
        for handle in (
            module.register_forward_pre_hook(lambda *_: self._running.append(part)),
            module.register_forward_hook(lambda *_: self._running.pop() and None),
        ):
            self._stack.callback(handle.remove)

    def _saved(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address and address not in self._own and address not in self.parts:
            self.parts[address] = self._running[-1]
            self._storages[address] = storage
        return tensor


def measured(batch: int, tokens: int, arms: tuple[str, ...] = ARMS) -> dict[str, Any]:
    """Bytes by part of each arm, as ``{"batch", "tokens", "arms": {arm: {part: bytes}}}``."""
    store = ModelStore(torch.device("cpu"), torch.float32, "fp32")
    request = BenchRequest(model=MODEL, seq_lens=(tokens,), against=arms)
    found = {}
    for arm in choose(request).architectures:
        step = train_case(store, arm, batch, tokens).prepare().call
        with Kept(store.trainee(arm).model) as kept:
            step(0)
        found[arm.arm] = kept.bytes()
    return {"batch": batch, "tokens": tokens, "arms": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    chosen = parser.parse_args()
    found = measured(chosen.batch, chosen.tokens)
    for arm, parts in found["arms"].items():
        shown = ", ".join(f"{part} {count / 2**20:.2f}" for part, count in parts.items())
        print(f"{arm:8s} {sum(parts.values()) / 2**20:.1f} MiB: {shown}")
    if chosen.out is not None:
        command = environment(["python", "-m", "benchmarks.kept_for_backward", *sys.argv[1:]])
        write_json(chosen.out, {"environment": command, **found})


if __name__ == "__main__":
    main()
