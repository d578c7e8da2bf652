"""How the WKV-7 kernels are launched: chunk length, value split, segments, warps, precision.

The choice is a table, not a measurement at run time: the same inputs then give the same bits on
every run. It holds what compiles for sm_80, sm_90 and sm_100 with the least spilling
(``tests/ops/test_aot_compile.py`` keeps it so); ``CANDIDATES`` is what a benchmark should compare.
"""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.errors import BackendError

HEAD_SIZES = (16, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

INTERPRETING: bool = triton.knobs.runtime.interpret
"""Whether TRITON_INTERPRET was set when the kernels were defined: they then run on the CPU."""


@dataclass(frozen=True)
class Launch:
    """One kernel's launch parameters.

    Attributes:
        chunk: tokens that are turned into matrix form at once; 16, 32 or 64.
        values: value channels of one program; a power of two that divides the head size.
        warps: warps of one program.
        stages: depth of the software pipeline for loads.
    """

    chunk: int
    values: int
    warps: int
    stages: int


CANDIDATES = {
    "forward": (
        Launch(16, 64, 2, 3),
        Launch(16, 64, 2, 2),
        Launch(16, 32, 2, 3),
        Launch(32, 64, 2, 3),
    ),
    "backward": (
        Launch(16, 64, 2, 1),
        Launch(16, 64, 4, 1),
        Launch(16, 64, 1, 1),
        Launch(16, 32, 8, 1),
    ),
}
"""At most four of each for head size 64 in bfloat16, every one with a reason to win."""


CHUNK = 16
"""Tokens per chunk, unless a caller says otherwise.

The backward pass at 32 tokens spills half a kilobyte a thread, and float16 could not hold 32
tokens of decay (e^{9.7}). Forward alone would fit, and is slower at 32 than at 16: a chunk's
products are a chain, and the inverse is two links longer (1.02 ms against 0.73 on an H200).
"""


def forward_launch(
    dtype: torch.dtype, size: int, chunk: int, heads: int, processors: int, values: int = 0
) -> Launch:
    """Launch of the forward kernel for ``heads`` (sequences x heads) on ``processors`` SMs.

    Few warps: each waits for the chain's products anyway, and what passes between warps costs more
    than registers that are spilled (docs/kernels.md has the times). ``values`` 0 chooses.
    """
    values, wide = _values(dtype, size, heads, processors, values)
    if dtype == torch.float32:
        return Launch(chunk, values, 8, 1)
    return Launch(chunk, values, 1 if values == 16 else 2, 2 if wide else 3)


#: Of the kernels that only carry a state or its gradient: the same chain of products.
state_gradients_launch = forward_launch
segment_states_launch = forward_launch


def backward_launch(dtype: torch.dtype, size: int, chunk: int, values: int = 0) -> Launch:
    """Launch of the backward kernel, which has a program for every chunk and so never too few.

    Every further value block costs a float32 part of five gradients, so blocks are kept large
    where registers allow it. Two warps at head size 64, though they hold twice as much each: what
    passes between warps costs more (docs/kernels.md); with fewer value rows, eight spill less.
    """
    values, wide = _values(dtype, size, 1, 1, values)
    warps = 8 if values < 64 else 4 if wide else 2
    return Launch(chunk, values, warps, 1)


def _values(
    dtype: torch.dtype, size: int, heads: int, processors: int, asked: int
) -> tuple[int, bool]:
    """Value channels of a scan's program, and whether its operands are wide.

    Raises:
        BackendError: more than 32 channels of float32 are asked for: compiled for eight warps, a
            product of three tf32 passes over 64 rows reads outside of its shared memory on sm_90
            (Triton 3.6), and four warps have no registers for it.
    """
    if dtype == torch.float32 and asked > 32:
        raise BackendError(f"values must be at most 32 for float32 tensors, got {asked}")
    wide = dtype == torch.float32 or size > 64
    return asked or _split_values(32 if wide else min(size, 64), size, heads, processors), wide


def segment_scan_launch(size: int) -> Launch:
    """Launch of the kernel that hands the state on, which has no chunks: loads run two ahead."""
    return Launch(1, 16, 8, 1) if size > 64 else Launch(1, 16, 4, 3)


def snapshot_launch(dtype: torch.dtype, size: int, every: int) -> Launch:
    """Launch of the snapshot kernels; chunk is their tile, a power of two that divides every."""
    wide = dtype == torch.float32 or size > 64
    tile = min(every & -every, 32 if wide else 64)
    return Launch(tile, min(size, 32 if wide else 64), 4, 1 if wide else 2)


def split_tiles(tiles: int, blocks: int, programs: int) -> tuple[int, int]:
    """Tiles of one program, and programs of one of ``blocks``, where a program walks over a range
    of a block's tiles and about ``programs`` of all blocks fill the GPU."""
    each = -(-tiles // max(1, programs // blocks))
    return each, -(-tiles // each)


def _split_values(values: int, size: int, heads: int, processors: int) -> int:
    """Halve the value block until there is a program for every processor, down to 16 channels."""
    values = min(values, size)
    while values > 16 and heads * (size // values) < processors:
        values //= 2
    return values


def segment_length(
    segments: int, tokens: int, chunk: int, programs: int, heads: int, processors: int
) -> int:
    """Tokens per segment (a multiple of ``chunk``), 0 for no segments (see ``triton_segments``).

    Two passes over segments cost 1.6 passes' work and a short serial scan, so they pay where the
    programs of one pass leave half the processors idle and sequences are long. Enough segments to
    give every processor two programs; beyond sqrt(2 chunks) the scan over segments would take
    longer than the segments themselves.

    Args:
        segments: how many to cut ``tokens`` tokens into; 0 chooses, and chooses none on a CPU.
        programs: of the one-pass kernel, after its value split.
        heads: sequences x heads.
    """
    if segments < 0:
        raise ValueError(f"segments must not be negative, got {segments}")
    chunks = -(-tokens // chunk)
    if segments == 0 and 2 * programs < processors and chunks >= SEGMENTED_CHUNKS:
        segments = min(-(-2 * processors // heads), isqrt(2 * chunks))
    return -(-chunks // segments) * chunk if segments > 1 and chunks > 1 else 0


SEGMENTED_CHUNKS = 64
"""Fewer chunks than this are scanned in one pass: the segments' launches would cost more."""


def precision(dtype: torch.dtype) -> dict[str, object]:
    """Operand type and float32 product modes, as the kernels' constant arguments.

    bfloat16 and float16 tensors multiply as they are, but the triangular inverse is made of pairs
    of bfloat16, 16 bits: its error would otherwise pass through every later product, and a GPU's
    tf32 cuts operands off after 10 bits instead of rounding them. float32 tensors multiply in three
    tf32 passes (error near 1e-6), or in one where the user allows torch to
    (``torch.set_float32_matmul_precision``).
    """
    if dtype == torch.float32:
        exact = torch.get_float32_matmul_precision() == "highest"
        mode = "tf32x3" if exact else "tf32"
        return {"OPERAND": tl.float32, "PRECISION": mode, "INVERSE_PRECISION": mode}
    operand = tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
    return {"OPERAND": operand, "PRECISION": "tf32", "INVERSE_PRECISION": "split"}


def check_inputs(inputs: tuple[Tensor, ...]) -> None:
    """Raise BackendError naming the argument of r, w, k, v, a, b that the kernels cannot take.

    CPU tensors work only through Triton's interpreter, which is for tests.
    """
    for name, x in zip("rwkvab", inputs, strict=True):
        if x.dtype not in DTYPES:
            raise BackendError(
                f"{name} must be float32, bfloat16 or float16 for backend 'triton', got {x.dtype}; "
                "backends 'chunked' and 'reference' also take float64"
            )
    size, device = inputs[3].shape[-1], inputs[3].device
    if size not in HEAD_SIZES:
        raise BackendError(
            f"backend 'triton' takes head sizes {', '.join(map(str, HEAD_SIZES))}, got {size}; "
            "backend 'chunked' takes any"
        )
    if device.type == "cpu" and not INTERPRETING:
        raise BackendError(
            "backend 'triton' needs CUDA tensors, v is on cpu; use backend 'chunked' "
            "(or, to test the kernels, set TRITON_INTERPRET=1 before Python starts)"
        )


@lru_cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a CUDA device; 1 for the interpreter's CPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Make x's GPU the current one, which is where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
