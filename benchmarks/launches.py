"""Every launch of the WKV-7 scans that is worth comparing, timed on a GPU.

    python -m benchmarks.launches --out benchmarks/gpu-launches.json

Launches are a table (``wuneng/ops/wkv7/triton_launch.py``) and not chosen at run time, since a
choice by timing would change a run's bits. This is what the table is checked with: the scans, and
what stands around them where they begin at raw projections, at the size of docs/kernels.md,
interleaved, medians of ``ROUNDS``. Nothing is judged here: that every candidate computes the same
is ``pytest -m gpu``'s part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.ops.wkv7 import triton_passes, triton_projections
from wuneng.ops.wkv7.triton_autograd import wkv7_triton
from wuneng.ops.wkv7.triton_from_projections import wkv7_from_projections_triton
from wuneng.ops.wkv7.triton_launch import Launch

ROUNDS = 15
DEVICE = torch.device("cuda")

FORWARD = [
    Launch(16, 64, 2, 3),
    Launch(16, 64, 2, 2),
    Launch(16, 64, 4, 2),
    Launch(16, 32, 2, 3),
    Launch(16, 32, 1, 3),
    Launch(32, 64, 4, 3),
]
#: Of the backward pass over chunks; that over states is a scan like the forward one.
BACKWARD = [
    Launch(16, 64, 2, 1),
    Launch(16, 64, 4, 1),
    Launch(16, 64, 1, 1),
    Launch(16, 32, 2, 1),
]
#: Of the kernels between projections and scan: "chunk" is their tile's rows.
AROUND = [Launch(rows, 64, warps, 1) for rows, warps in ((16, 4), (16, 2), (32, 4), (8, 2))]
#: Compilers at work before anything is timed.
COMPILERS = 8


@contextmanager
def launched_as(kernel: str, launch: Launch) -> Iterator[None]:
    """One pass takes this launch, whatever the table says; the others take the table's."""
    if kernel.startswith("from projections"):
        sizes = {"ROWS": launch.chunk, "WARPS": launch.warps}
        with patch.multiple(triton_projections, **sizes):
            yield
        return
    names = {"backward": "backward_launch", "state gradients": "state_gradients_launch"}
    scan = next((names[x] for x in names if x in kernel), "forward_launch")
    with patch.object(triton_passes, scan, lambda *_: launch):
        yield


def drawn(batch: int, tokens: int, heads: int, size: int) -> dict[str, Tensor]:
    """Inputs of both operators, bfloat16, as the benchmark draws them."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape = (batch, tokens, heads, size)

    def normal() -> Tensor:
        return torch.randn(shape, generator=generator, device=DEVICE)

    kappa, rate, decay = F.normalize(normal(), dim=-1), normal(), normal()
    made = {"r": normal(), "k": normal(), "v": normal(), "decay_logit": decay, "rate_logit": rate}
    made |= {"w": -0.6065306597 * decay.sigmoid(), "a": -kappa, "b": kappa * rate.sigmoid()}
    return {name: x.bfloat16() for name, x in made.items()}


def calls(inputs: dict[str, Tensor]) -> dict[str, Callable[[Launch], Callable[[], object]]]:
    """By kernel: from a launch to what is timed. Both passes of backward are timed together, on a
    kept graph; the one that is named takes the launch."""
    six = [inputs[name] for name in "rwkvab"]
    weight = torch.ones(inputs["r"].shape[2:], device=DEVICE)
    raw = [inputs[name] for name in ("r", "decay_logit", "k", "v", "rate_logit")]

    def scan(launch: Launch, keeps: bool) -> Tensor:
        leaves = [x.detach().requires_grad_(keeps) for x in six]
        y: Tensor = wkv7_triton(*leaves, chunk=launch.chunk, segments=1)[0]
        return y

    def forward(launch: Launch) -> Callable[[], object]:
        return lambda: scan(launch, False)

    def forward_kept(launch: Launch) -> Callable[[], object]:
        return lambda: scan(launch, True)

    def backward(launch: Launch) -> Callable[[], object]:
        leaves = [x.detach().requires_grad_() for x in six]
        y = wkv7_triton(*leaves, chunk=launch.chunk, segments=1)[0]
        dy = torch.ones_like(y)
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    def raw_leaves() -> list[Tensor]:
        return [x.detach().requires_grad_() for x in raw]

    def projected(leaves: list[Tensor]) -> Tensor:
        r, decay, k, v, rate = leaves
        given = (r, decay, k, v, rate, None, weight, weight)
        y: Tensor = wkv7_from_projections_triton(*given, a_max=1.0)[0]
        return y

    def raw_forward(_: Launch) -> Callable[[], object]:
        return lambda: projected(raw_leaves())

    def raw_backward(_: Launch) -> Callable[[], object]:
        leaves = raw_leaves()
        y = projected(leaves)
        dy = torch.ones_like(y)
        return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)

    return {
        "forward": forward,
        "forward, states kept": forward_kept,
        "backward": backward,
        "state gradients": backward,
        "from projections, states kept": raw_forward,
        "from projections, backward": raw_backward,
    }


def compile_one(kernel: str, launch: Launch) -> None:
    """Leave this launch in Triton's cache, by a run on few tokens with the same specialisation."""
    shape = (1, 64, 32, 64)
    with launched_as(kernel, launch):
        calls(drawn(*shape))[kernel](launch)()
    torch.cuda.synchronize()


def pairs() -> list[tuple[str, Launch]]:
    """What is compared; states are kept in chunks of 16."""
    found = []
    for kernel in calls(drawn(1, 16, 1, 64)):
        if kernel.startswith("from projections"):
            launches = AROUND
        else:
            launches = BACKWARD if "backward" in kernel else FORWARD
            if kernel != "forward":
                launches = [x for x in launches if x.chunk == 16]
        found += [(kernel, launch) for launch in launches]
    return found


def once(call: Callable[[], object]) -> float:
    """Milliseconds of one call, by events; the host is ahead of the device by then."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000)  # type: ignore[no-untyped-call]  # about a millisecond
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end))


def compared(
    kernel: str, make: Callable[[Launch], Callable[[], object]]
) -> list[dict[str, object]]:
    """A row for each launch, the fastest first; what does not compile says why."""
    found: list[dict[str, object]] = []
    ready: dict[Launch, tuple[Callable[[], object], list[float]]] = {}
    for launch in [launch for name, launch in pairs() if name == kernel]:
        try:
            with launched_as(kernel, launch):
                call = make(launch)
                call()
                torch.cuda.synchronize()
            ready[launch] = call, []
        except Exception as error:
            found.append({"launch": asdict(launch), "failed": f"{type(error).__name__}"})
    for _ in range(ROUNDS):
        for launch, (call, times) in ready.items():
            with launched_as(kernel, launch):
                times.append(once(call))
    rows = [{"launch": asdict(x), "ms": median(times)} for x, (_, times) in ready.items()]
    return sorted(rows, key=lambda row: float(row["ms"])) + found  # type: ignore[arg-type]


def main() -> None:
    """Print a table of each kernel's launches and write them all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", default="8,4096,32,64", help="batch, tokens, heads, head size")
    options = parser.parse_args()
    shape = tuple(int(x) for x in options.shape.split(","))
    record: dict[str, object] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "shape": shape,
        "dtype": "bfloat16",
    }
    spawning = get_context("spawn")
    with ProcessPoolExecutor(COMPILERS, mp_context=spawning) as pool:
        waiting = [pool.submit(compile_one, *pair) for pair in pairs()]
        wait(waiting)  # what does not compile says so when its turn comes
    for kernel, make in calls(drawn(*shape)).items():
        rows = compared(kernel, make)
        record[kernel] = rows
        print(f"{kernel}:")
        for row in rows:
            print(f"  {row.get('ms', row.get('failed'))!s:.8}  {row['launch']}")
        if options.out:
            options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
