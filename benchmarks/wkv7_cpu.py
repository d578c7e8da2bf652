"""WKV-7 on the CPU beside causal attention and the token loop: the figures behind our claims.

    python -m benchmarks.wkv7_cpu [--threads 2] [--out benchmarks/wkv7_cpu.json]

Compared, in float32, N = 64, forward + backward (and forward alone): the C kernels (``native``,
where there is a compiler), the chunked form, torch's
``scaled_dot_product_attention(is_causal=True)`` on as many heads and tokens, and two token loops
under autograd: ``indexed``, the recurrence typed in as it is usually found (einsum, ``x[:, t]``),
and ``loop``, backend ``reference``, the same with unbind and batched products.

Contenders of one shape are timed in turn, so that a busy machine slows all of them; ratios are
medians of the rounds' own ratios. Nothing is timed before its outputs and gradients at that very
shape agree with float64: the token loop's where that is affordable, elsewhere the chunked form's
own in float64, which the smaller shapes have tied to the loop.

Results depend on OMP_WAIT_POLICY: threads that sleep between operators (PASSIVE) cost a step's
latency, threads that spin (the default) suffer where cores are shared.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.bench.timing import Timing, WallClock, interleave
from wuneng.device import environment
from wuneng.ops import native, wkv7
from wuneng.records import write_json

HEAD_SIZE = 64
TOLERANCE = 1e-5
BACKENDS = (["native"] if native.library(HEAD_SIZE) else []) + ["chunked"]
LOOP_TOKENS = 1024  # the float64 loop under autograd keeps every state: 2 GB at B = 4, H = 4


@dataclass(frozen=True)
class Shape:
    """B sequences of T tokens, H heads of ``HEAD_SIZE``."""

    batch: int
    tokens: int
    heads: int

    def inputs(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """r, w, k, v, a, b as RWKV-7 makes them, from a fixed seed."""
        random = torch.Generator().manual_seed(self.tokens + self.heads)
        shape = (self.batch, self.tokens, self.heads, HEAD_SIZE)
        r, x, k, v, kappa, rate = (torch.randn(shape, generator=random) for _ in range(6))
        kappa = F.normalize(kappa, dim=-1)
        w = -math.exp(-0.5) * torch.sigmoid(2 * x)
        values = (r, w, 0.3 * k, v, -kappa, kappa * torch.sigmoid(rate))
        return [value.to(dtype).requires_grad_() for value in values]

    def y_gradient(self, dtype: torch.dtype = torch.float32) -> Tensor:
        random = torch.Generator().manual_seed(1)
        shape = (self.batch, self.tokens, self.heads, HEAD_SIZE)
        return torch.randn(shape, generator=random).to(dtype)


def outputs_and_gradients(shape: Shape, backend: str, dtype: torch.dtype) -> list[Tensor]:
    inputs = shape.inputs(dtype)
    y, state = wkv7(*inputs, backend=backend)
    gradients = torch.autograd.grad(y, inputs, shape.y_gradient(dtype))
    return [y.detach(), state.detach(), *gradients]


def indexed_loop(inputs: list[Tensor]) -> Tensor:
    """y ``[B, T, S, N]`` by the recurrence as one would first write it."""
    r, w, k, v, a, b = inputs
    batch, tokens, heads, size = v.shape
    state = v.new_zeros(batch, heads, size, size)
    ys = []
    for t in range(tokens):
        removed = torch.einsum("bhvk,bhk->bhv", state, a[:, t])
        state = state * w[:, t].exp()[:, :, None, :]
        state = state + torch.einsum("bhv,bhk->bhvk", removed, b[:, t])
        state = state + torch.einsum("bhv,bhk->bhvk", v[:, t], k[:, t])
        ys.append(torch.einsum("bhvk,bhk->bhv", state, r[:, t]))
    return torch.stack(ys, dim=1)


def largest_error(shape: Shape) -> tuple[float, str]:
    """Largest relative error of any output or gradient, and what it was measured against."""
    oracle = "chunked"
    if shape.batch * shape.tokens * shape.heads <= 4 * 4 * LOOP_TOKENS:
        oracle = "reference"
    expected = outputs_and_gradients(shape, oracle, torch.float64)
    errors = [
        float((one.double() - other).abs().max() / other.abs().max())
        for backend in BACKENDS
        for one, other in zip(
            outputs_and_gradients(shape, backend, torch.float32), expected, strict=True
        )
    ]
    return max(errors), f"{oracle} in float64"


def contenders(shape: Shape, loop: bool, attention: bool) -> dict[str, Callable[[int], object]]:
    """What is timed at a shape; names are ``<who> <what>``."""
    inputs, d_y = shape.inputs(), shape.y_gradient()
    head_major = (shape.batch, shape.heads, shape.tokens, HEAD_SIZE)
    random = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(head_major, generator=random, requires_grad=True) for _ in range(3))
    d_head_major = torch.randn(head_major, generator=random)

    def state(backend: str) -> Callable[[int], object]:
        return lambda _: torch.autograd.grad(wkv7(*inputs, backend=backend)[0], inputs, d_y)

    def attend(_: int = 0) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def without_gradients(call: Callable[[], object]) -> Callable[[int], object]:
        def run(_: int) -> object:
            with torch.no_grad():
                return call()

        return run

    calls: dict[str, Callable[[int], object]] = {
        f"{backend} forward+backward": state(backend) for backend in BACKENDS
    }
    if attention:
        calls["sdpa forward+backward"] = lambda _: torch.autograd.grad(
            attend(), (q, k, v), d_head_major
        )
        calls["sdpa forward"] = without_gradients(attend)
    if loop:
        calls["loop forward+backward"] = state("reference")
        calls["indexed forward+backward"] = lambda _: torch.autograd.grad(
            indexed_loop(inputs), inputs, d_y
        )
    for backend in BACKENDS:
        calls[f"{backend} forward"] = without_gradients(partial(wkv7, *inputs, backend=backend))
    return calls


def measure(shape: Shape, loop: bool, attention: bool, seconds: float) -> list[dict[str, Any]]:
    """Gate, then time; one row for each contender."""
    error, oracle = largest_error(shape)
    if error > TOLERANCE:
        raise SystemExit(f"error: {shape}: relative error {error:.1e} exceeds {TOLERANCE:.0e}")
    calls = contenders(shape, loop, attention)
    estimates = {}
    for name, call in calls.items():
        call(0)
        start = time.perf_counter()
        call(0)
        estimates[name] = time.perf_counter() - start
    rows = []
    timings = interleave(calls, estimates, WallClock(), seconds)
    for name, timing in timings.items():
        who, what = name.split()
        rows.append(
            {
                "arm": who,
                "what": what,
                "batch": shape.batch,
                "seq_len": shape.tokens,
                "heads": shape.heads,
                "head_size": HEAD_SIZE,
                "dtype": "float32",
                "median_ms": 1e3 * timing.median,
                "spread_ms": 1e3 * timing.spread,
                "best_ms": 1e3 * min(timing.samples),
                "samples": len(timing.samples),
                "ratio_to_chunked": _ratio(timing, timings[f"chunked {what}"]),
                "ratio_to_fastest": _ratio(timing, timings[f"{BACKENDS[0]} {what}"]),
                "gate_error": error,
                "gate_against": oracle,
            }
        )
        print(
            f"B={shape.batch} T={shape.tokens:6d} H={shape.heads:2d}  {name:26s}"
            f"{rows[-1]['median_ms']:10.1f} ms   "
            f"{rows[-1]['ratio_to_fastest']:6.2f} x {BACKENDS[0]}",
            file=sys.stderr,
        )
    return rows


def _ratio(one: Timing, other: Timing) -> float:
    return median(a / b for a, b in zip(one.samples, other.samples, strict=True))


def exponent(rows: list[dict[str, Any]], arm: str, batch: int) -> float:
    """Slope of log time over log T of one backend, from the sweep's shapes."""
    points = [
        (math.log(row["seq_len"]), math.log(row["median_ms"]))
        for row in rows
        if row["arm"] == arm
        and row["what"] == "forward+backward"
        and row["batch"] == batch
        and row["heads"] == 4
    ]
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum(
        (x - mean_x) ** 2 for x, _ in points
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=4, help="of the fixed-length comparison")
    parser.add_argument("--heads", type=int, nargs="+", default=[4, 12])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument(
        "--sweep",
        type=int,
        nargs="*",
        default=[1024, 2048, 4096, 8192, 16384, 32768],
        help="lengths at B = 1, H = 4",
    )
    parser.add_argument("--attention-up-to", type=int, default=8192, help="in the sweep")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each shape's rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/wkv7_cpu.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    load = os.getloadavg()
    rows = []
    for tokens in options.tokens:
        for heads in options.heads:
            loop = tokens <= LOOP_TOKENS and heads <= 4
            rows += measure(Shape(options.batch, tokens, heads), loop, True, options.seconds)
    for tokens in options.sweep:
        attention = tokens <= options.attention_up_to
        rows += measure(Shape(1, tokens, 4), False, attention, options.seconds)
    record = {
        "schema": 1,
        "environment": environment(["python", "-m", "benchmarks.wkv7_cpu", *sys.argv[1:]])
        | {
            "threads": options.threads,
            "wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
            "load_average_before": load,
            "load_average_after": os.getloadavg(),
        },
        "rows": rows,
        "exponents": {
            f"{backend} forward+backward": exponent(rows, backend, 1)
            for backend in BACKENDS
            if options.sweep
        },
    }
    write_json(options.out, record)
    print(f"wrote {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
