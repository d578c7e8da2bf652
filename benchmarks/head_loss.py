"""The head's loss and its gradients: ours beside whole logits and beside other projects' fused
losses, where those can be imported; time of both ways and peak memory.

    OMP_WAIT_POLICY=PASSIVE OMP_NUM_THREADS=1 python -m benchmarks.head_loss --out FILE

``ours`` is ``wuneng.ops.linear_cross_entropy``, ``whole`` torch's on logits that exist; ``liger``
(liger-kernel), ``cce`` (cut-cross-entropy: its exact form; ``cce-filtered`` leaves out gradients
below 2^-12, its default) and ``fla`` (flash-linear-attention) need a GPU. Before a way is timed,
its loss and both gradients are compared with float64; what is further off than four times what
whole logits lose at the same type gets no time. Hidden states and weight are bfloat16 on a GPU,
float32 on a CPU. All ways are timed in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.machine import load_average
from wuneng.bench.memory import peak_bytes
from wuneng.bench.timing import WallClock, interleave
from wuneng.device import environment
from wuneng.ops.linear_cross_entropy import linear_cross_entropy
from wuneng.records import write_json

VOCABULARIES = (50_304, 151_936)
#: Tokens and width, by device: a step of the 400m preset; a small model's.
SIZES = {"cuda": (8192, 1024), "cpu": (2048, 256)}
#: Of an error in whole logits at the same type.
ALLOWED = 4.0
CHECKED_TOKENS, CHECKED_VOCABULARY = 384, 4096

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Hidden states ``[n, D]``, weight ``[V, D]``, labels ``[n]``: the sum of cross-entropies."""


def _liger() -> Loss:
    loss = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss
    summed = loss(reduction="sum")
    return lambda hidden, weight, labels: summed(weight, hidden, labels)


def _cce(filter_eps: str | None) -> Loss:
    loss = import_module("cut_cross_entropy").linear_cross_entropy
    return partial(loss, reduction="sum", filter_eps=filter_eps)


def _fla() -> Loss:
    summed = import_module("fla.modules").FusedLinearCrossEntropyLoss(reduction="sum")
    return lambda hidden, weight, labels: summed(hidden, labels, weight)


#: The distribution of each peer, and what makes its loss.
PEERS: dict[str, tuple[str, Callable[[], Loss]]] = {
    "liger": ("liger-kernel", _liger),
    "cce": ("cut-cross-entropy", lambda: _cce(None)),
    "cce-filtered": ("cut-cross-entropy", lambda: _cce("high")),
    "fla": ("flash-linear-attention", _fla),
}


def ways(device: torch.device) -> tuple[dict[str, Loss], dict[str, str]]:
    """The losses that run on ``device``; of each peer its version, or why it is left out."""
    found: dict[str, Loss] = {
        "ours": partial(linear_cross_entropy, whole_bytes=0),
        "whole": partial(linear_cross_entropy, whole_bytes=1 << 60),
    }
    said: dict[str, str] = {}
    for name, (distribution, make) in PEERS.items():
        if device.type != "cuda":
            said[name] = "needs a GPU"
            continue
        try:
            found[name] = make()
            said[name] = metadata.version(distribution)
        except Exception as error:  # a peer may fail in its own way
            said[name] = f"missing: {type(error).__name__}: {error}".splitlines()[0]
    return found, said


def inputs(tokens: int, width: int, vocabulary: int, device: torch.device) -> list[Tensor]:
    """Hidden states, weight, labels (an eighth of them not scored), as after some training."""
    draw = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(tokens, width, generator=draw, device=device)
    weight = torch.randn(vocabulary, width, generator=draw, device=device) / width**0.5
    labels = torch.randint(vocabulary, (tokens,), generator=draw, device=device)
    labels[::8] = -100
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return [hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), labels]


def both_ways(loss: Loss, hidden: Tensor, weight: Tensor, labels: Tensor) -> list[Tensor]:
    """The loss and its two gradients."""
    hidden.grad = weight.grad = None
    value = loss(hidden, weight, labels)
    value.backward()
    assert hidden.grad is not None
    assert weight.grad is not None
    return [value.detach(), hidden.grad, weight.grad]


def errors(loss: Loss, given: list[Tensor]) -> list[float]:
    """Relative errors of the loss and both gradients against float64."""
    wide = [x.detach().double().requires_grad_() for x in given[:2]]
    exact = both_ways(partial(linear_cross_entropy, whole_bytes=1 << 60), *wide, given[2])
    found = both_ways(loss, *given)
    return [float((f.double() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]


def checked(found: dict[str, Loss], width: int, device: torch.device) -> dict[str, dict[str, Any]]:
    """The errors of each way, and whether it is as right as whole logits are."""
    given = inputs(CHECKED_TOKENS, width, CHECKED_VOCABULARY, device)
    bounds = [ALLOWED * max(e, 1e-7) for e in errors(found["whole"], given)]
    rows: dict[str, dict[str, Any]] = {}
    for name, loss in found.items():
        try:
            off = errors(loss, given)
        except Exception as error:  # a peer may fail in its own way
            rows[name] = {"right": False, "note": f"{type(error).__name__}: {error}"[:200]}
            continue
        right = all(e <= bound for e, bound in zip(off, bounds, strict=True))
        rows[name] = {"right": right, "errors": off}
    return rows


def measured(
    found: dict[str, Loss],
    sizes: tuple[int, int, int],
    device: torch.device,
    seconds: float = 20.0,
) -> dict[str, dict[str, Any]]:
    """Median milliseconds of both ways and peak bytes beside the inputs, by name."""
    tokens, width, vocabulary = sizes
    given = inputs(tokens, width, vocabulary, device)

    def call(loss: Loss) -> None:
        both_ways(loss, *given)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    calls = {name: (lambda _, loss=loss: call(loss)) for name, loss in found.items()}
    rows: dict[str, dict[str, Any]] = {}
    for name, once in list(calls.items()):
        try:
            once(0)  # compiles, fills caches
            given[0].grad = given[1].grad = None
            rows[name] = {"peak_bytes": peak_bytes(lambda once=once: once(0), device)}
        except Exception as error:  # out of memory, or a peer's own way to fail
            del calls[name]
            rows[name] = {"note": f"{type(error).__name__}: {error}"[:200]}
    timings = interleave(calls, dict.fromkeys(calls, 1.0), WallClock(), seconds=seconds)
    whole = timings["whole"].median if "whole" in timings else float("nan")
    for name, timing in timings.items():
        rows[name]["median_ms"] = 1e3 * timing.median
        rows[name]["of_whole"] = timing.median / whole
        rows[name]["samples"] = len(timing.samples)
    return rows


def main() -> None:
    """Check, time and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokens, width = SIZES[device.type]
    before = load_average()
    found, said = ways(device)
    judged = checked(found, width, device)
    right = {name: loss for name, loss in found.items() if judged[name]["right"]}
    cases = []
    for size in VOCABULARIES:
        ways_there = measured(right, (tokens, width, size), device)
        cases.append({"vocabulary": size, "ways": ways_there})
        for name, row in ways_there.items():
            if "median_ms" not in row:
                print(f"{size:>7} {name:<12} {row['note']}")
                continue
            print(
                f"{size:>7} {name:<12} {row['median_ms']:9.1f} ms"
                f" {row['of_whole']:5.2f} of whole {row['peak_bytes'] / 2**20:8.0f} MiB"
            )
    record = {
        "schema": 1,
        "environment": environment(["python", "-m", "benchmarks.head_loss"]),
        "load_average": {"start": before, "end": load_average()},
        "threads": torch.get_num_threads(),
        "tokens": tokens,
        "width": width,
        "peers": said,
        "checks": judged,
        "cases": cases,
    }
    write_json(options.out, record)


if __name__ == "__main__":
    main()
