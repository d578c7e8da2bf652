"""wind_rwkv's chunked kernel beside WKV-7: the fastest that is published, in CUDA C++.

It takes bfloat16 alone, whole chunks of 16 tokens, and the logarithm of the negative log decay in
the log decay's place: its inputs are drawn in that form, so that no conversion is timed, and the
gate compares it with the token loop on the same numbers. Built by ``nvcc`` at its first use.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from wuneng.bench import roofline
from wuneng.bench.engine import Case, Missing, Prepared, Unsupported
from wuneng.bench.gate import GateResult
from wuneng.bench.peers import WIND, load_peer, require_gpu
from wuneng.bench.recurrence_gate import Oracle
from wuneng.bench.shapes import OperatorShapes, prepared
from wuneng.ops.wkv7.reference import wkv7_reference

__all__ = ["wind_case"]

CHUNK = 16
_LOOP = "WKV-7's token loop, float64"


def wind_case(
    shapes: OperatorShapes,
    operation: str,
    inputs: Callable[[OperatorShapes, int], list[Tensor]],
    *,
    backward: bool,
) -> Case:
    """Its forward pass, or its forward pass and all six gradients.

    Args:
        inputs: r, w (log decay), k, v, a, b ``[B, T, H, N]`` from the shapes and a seed.
    """
    row = shapes.row(operation, "wind")

    def own_inputs(seed: int) -> list[Tensor]:
        r, w, k, v, a, b = inputs(shapes, seed)
        return [r, torch.log(-w.float()).to(w.dtype), k, v, a, b]

    def named() -> dict[str, Tensor]:
        return dict(zip("rwkvab", own_inputs(0), strict=True))

    oracle = Oracle(_loop, named, _LOOP, lambda own: -torch.exp(own["w"]))

    def prepare() -> Prepared:
        run = _operator(shapes)
        return prepared(run, [own_inputs(seed) for seed in range(shapes.sets(6))], backward)

    def gate() -> GateResult:
        return oracle.judge(row, _operator(shapes), backward=backward)

    work = roofline.wkv7(
        shapes.batch, shapes.tokens, shapes.heads, shapes.size, shapes.element, backward=backward
    )
    return Case(row, shapes.batch * shapes.tokens, work, prepare, gate, int(work.bytes))


def _loop(r: Tensor, w: Tensor, *others: Tensor) -> Any:
    return wkv7_reference(r, -torch.exp(w), *others)  # type: ignore[call-arg]


def _operator(shapes: OperatorShapes) -> Callable[..., Any]:
    """Called as (r, w, k, v, a, b), returns (y, state).

    Raises:
        Missing: it is not installed, or cannot be built here.
        Unsupported: no GPU, another type than bfloat16, or a length that leaves a chunk open.
    """
    kernels = load_peer(WIND, "wind_rwkv.rwkv7")
    require_gpu(WIND, shapes.device)
    if shapes.dtype != torch.bfloat16:
        raise Unsupported(f"{WIND} computes in bf16, this run is in {shapes.dtype_name}")
    if shapes.tokens % CHUNK:
        raise Unsupported(f"{WIND} takes multiples of {CHUNK} tokens, this run has {shapes.tokens}")
    try:
        with _compiler_output_aside():
            kernels.load_chunked_cuda(shapes.size)
    except Exception as error:
        raise Missing(f"{WIND} cannot be built here: {type(error).__name__}") from None
    run: Callable[..., Any] = kernels.attn_chunked_cuda
    return run


@contextlib.contextmanager
def _compiler_output_aside() -> Iterator[None]:
    """What ``nvcc`` and ``ninja`` print is no part of a benchmark's tables."""
    sys.stdout.flush()
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
