"""Triton's CPU interpreter, made faithful for bfloat16 and tf32.

The interpreter keeps bfloat16 as raw uint16. Loads and stores are right, but casts truncate instead
of rounding, and a dot, a sum or a comparison works on the bit patterns and silently returns
garbage. ``faithful`` replaces casts and dots, and makes everything else on bfloat16 raise, so that
a kernel which computes in bfloat16 fails its test instead of passing by luck. It can also round
float32 operands of a tf32 dot as the hardware does, which the interpreter ignores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

triton = pytest.importorskip("triton", reason="Triton is not installed")
import triton.language as tl  # noqa: E402
from triton.runtime import interpreter  # noqa: E402

if not triton.knobs.runtime.interpret:
    pytest.skip(
        "needs Triton's interpreter: TRITON_INTERPRET=1 before Python starts",
        allow_module_level=True,
    )

Handle = interpreter.TensorHandle


def bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """float32 to bfloat16's bits (uint16), to nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def float32_values(bits: np.ndarray) -> np.ndarray:
    """bfloat16's bits (uint16) to the float32 of the same value."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def tf32_values(values: np.ndarray) -> np.ndarray:
    """float32 cut off after tf32's 10 bits of mantissa, as tensor cores do it (seen on an H200)."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def _is_bfloat16(handle: Any) -> bool:
    return handle.dtype.scalar == tl.bfloat16


def _cast(builder: Any, source: Any, target: Any, rounding: Any = None) -> Any:
    data = float32_values(source.data) if _is_bfloat16(source) else source.data
    if target.scalar == tl.bfloat16:
        return Handle(bfloat16_bits(data.astype(np.float32)), tl.bfloat16)
    return Handle(data.astype(interpreter._get_np_dtype(target)), target.scalar)


def _dot(rounds_tf32: bool) -> Any:
    def dot(builder: Any, a: Any, b: Any, d: Any, precision: Any, *rest: Any) -> Any:
        operands = []
        for handle in (a, b):
            data = float32_values(handle.data) if _is_bfloat16(handle) else handle.data
            single_pass = "TF32" in str(precision) and "x3" not in str(precision)
            if rounds_tf32 and single_pass and data.dtype == np.float32:
                data = tf32_values(data)
            operands.append(data)
        product = np.matmul(*operands, dtype=d.data.dtype)
        return Handle(product + d.data, d.dtype.scalar)

    return dot


def _refusing(original: Any, name: str) -> Any:
    def operation(builder: Any, *handles: Any) -> Any:
        if any(isinstance(x, Handle) and _is_bfloat16(x) for x in handles):
            raise TypeError(f"{name} on bfloat16: the interpreter would compute with bit patterns")
        return original(builder, *handles)

    return operation


def _check_tensor(interface: Any, tensors: Any) -> None:
    if any(_is_bfloat16(x.handle) for x in tensors):
        raise TypeError("reduction or scan on bfloat16: it would compute with bit patterns")


@contextmanager
def faithful(rounds_tf32: bool = False) -> Iterator[None]:
    """Within, kernels see real bfloat16; with ``rounds_tf32`` also real tf32 dots."""
    builder = interpreter.InterpreterBuilder
    with (
        patch.object(builder, "cast_impl", _cast),
        patch.object(builder, "create_fp_to_fp", _cast),
        patch.object(builder, "create_dot", _dot(rounds_tf32)),
        patch.object(builder, "binary_op", _refusing(builder.binary_op, "arithmetic")),
        patch.object(builder, "unary_op", _refusing(builder.unary_op, "a function")),
        patch.object(builder, "create_fma", _refusing(builder.create_fma, "arithmetic")),
        patch.object(interpreter.ReduceScanOpInterface, "check_tensor", _check_tensor),
    ):
        yield
