"""A training step whose optimiser goes over many small tensors, and over one flat one a group.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.flat_optimizer --out FILE

The model is ``benchmarks/cpu.yaml``. ``tensors`` is what training does: fused AdamW on every
parameter. ``flat`` has all parameters of a group as views of one tensor, and their gradients of
another: AdamW, the norm and the clipping are then a call or two each, but gradients are added to
zeros instead of being handed over. All arms and ways are timed in turn in one process, with one
thread in processor time. ``update`` is the norm, clipping, AdamW and what makes gradients ready for
the next step; ``gained`` the share of a step of ``tensors`` that ``flat`` saves, the median of each
round's own.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.training_step import MODEL
from wuneng.bench.architectures import Architecture, choose
from wuneng.bench.machine import load_average
from wuneng.bench.models import training_settings
from wuneng.bench.request import BenchRequest
from wuneng.device import environment
from wuneng.records import write_json
from wuneng.train.optimizer import build_optimizer

WAYS = ("tensors", "flat")
CLIP = 1.0


class Step:
    """A model, and the optimiser of its recipe one way or the other."""

    def __init__(self, architecture: Architecture, way: str, batch: int, tokens: int) -> None:
        torch.manual_seed(0)
        self.model = architecture.build()
        self.optimizer = build_optimizer(self.model, training_settings({}, batch, tokens))
        self.flat = way == "flat"
        if self.flat:
            for group in self.optimizer.param_groups:
                group["params"] = [_flattened(group["params"])]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    def backward(self, tokens: Tensor) -> float:
        """Gradients of the mean loss of ``tokens`` ``[B, T]``; the loss."""
        loss = self.model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        return float(loss.detach())

    def update(self) -> None:
        """Clip, step, and make ready for the next gradients."""
        gradients = [p.grad for p in self.trained if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        nn.utils.clip_grads_with_norm_(self.trained, CLIP, norm, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.flat)


def _flattened(parameters: list[nn.Parameter]) -> nn.Parameter:
    """One parameter with a gradient of zeros, of which the given ones become views."""
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
    flat.grad = torch.zeros_like(flat)
    sizes = [p.numel() for p in parameters]
    for p, value, gradient in zip(
        parameters, flat.detach().split(sizes), flat.grad.split(sizes), strict=True
    ):
        p.data, p.grad = value.view_as(p), gradient.view_as(p)
    return flat


def measured(
    batch: int, tokens: int, rounds: int, arms: tuple[str, ...] = ("mha",)
) -> dict[str, Any]:
    """Rows of all arms and ways at one shape."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    chosen = choose(BenchRequest(model=MODEL, seq_lens=(tokens,), against=arms)).architectures
    steps = {(a.arm, way): Step(a, way, batch, tokens) for a in chosen for way in WAYS}
    vocabulary = chosen[0].config.vocab_size
    ids = torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(0))
    whole: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    updates: dict[tuple[str, str], list[float]] = {key: [] for key in steps}
    for _ in range(rounds + 2):
        for key, step in steps.items():
            began = clock()
            step.backward(ids)
            between = clock()
            step.update()
            updates[key].append(clock() - between)
            whole[key].append(clock() - began)
    rows = []
    for (arm, way), times in whole.items():
        tensors, others = whole[arm, "tensors"][2:], updates[arm, "tensors"][2:]
        own, update = times[2:], updates[arm, way][2:]
        rows.append(
            {
                "arm": arm,
                "way": way,
                "tensors": len(steps[arm, way].trained),
                "milliseconds": 1e3 * median(own),
                "update_milliseconds": 1e3 * median(update),
                "update_share": median(u / t for u, t in zip(update, own, strict=True)),
                "gained": median((a - b) / a for a, b in zip(tensors, own, strict=True)),
                "gained_by_update": median(
                    (a - b) / t for a, b, t in zip(others, update, tensors, strict=True)
                ),
            }
        )
    shape = {"batch": batch, "tokens": tokens, "rounds": rounds}
    return {**shape, "threads": torch.get_num_threads(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    began, found = load_average(), measured(1, 512, chosen.rounds)
    for row in found["rows"]:
        print(
            f"{row['arm']:8s} {row['way']:8s} {row['tensors']:4d} tensors, "
            f"{row['milliseconds']:7.1f} ms, of which the update {row['update_milliseconds']:.2f} "
            f"({row['update_share']:.1%}); a step gains {row['gained']:+.1%}, its update "
            f"{row['gained_by_update']:+.1%}"
        )
    if chosen.out is not None:
        command = environment(["python", "-m", "benchmarks.flat_optimizer", *sys.argv[1:]])
        write_json(chosen.out, {"environment": command, "load_average": began, "shapes": [found]})


if __name__ == "__main__":
    main()
