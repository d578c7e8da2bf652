"""The interpreter's shim itself: bfloat16 rounds as torch's, and misuse raises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.ops.triton_interpreter import (  # isort: split
    bfloat16_bits,
    faithful,
    float32_values,
    tf32_values,
)

import triton
import triton.language as tl

from tests.precision import assert_as_exact

VALUES = torch.cat(
    [
        torch.randn(1000, generator=torch.Generator().manual_seed(0))
        * 10 ** torch.arange(-20, 20).repeat_interleave(25).float(),
        torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-40, 3.39e38, 1.00390625]),
    ]
)


def test_bfloat16_rounds_as_torch() -> None:
    expected = VALUES.to(torch.bfloat16)
    bits = bfloat16_bits(VALUES.numpy())
    assert np.array_equal(float32_values(bits), expected.float().numpy(), equal_nan=True)


def test_tf32_keeps_ten_bits_and_cuts_the_others_off() -> None:
    near_two = 2 - 2**-12
    cut = tf32_values(np.array([1 + 2**-10, 1 + 2**-11, near_two, -near_two, -3.0], np.float32))
    assert cut.tolist() == [1 + 2**-10, 1.0, 2 - 2**-10, -2 + 2**-10, -3.0]


@triton.jit
def _round_trip(source, target, wide, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    half = tl.load(source + place).to(tl.bfloat16)
    tl.store(target + place, half)
    tl.store(wide + place, half.to(tl.float32))


@triton.jit
def _matrix_product(x, y, product, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(product + place, tl.dot(tl.load(x + place), tl.load(y + place)))


@triton.jit
def _add_halves(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place) + tl.load(x + place))


@triton.jit
def _sum_halves(x, y, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, SIZE)), 0))


def test_casts_in_a_kernel() -> None:
    source = VALUES[:1008][:512].contiguous()
    target, wide = torch.empty(512, dtype=torch.bfloat16), torch.empty(512)
    with faithful():
        _round_trip[(1,)](source, target, wide, SIZE=512)
    assert torch.equal(target, source.to(torch.bfloat16))
    assert torch.equal(wide, source.to(torch.bfloat16).float())


def test_dot_in_a_kernel() -> None:
    x, y = (torch.randn(16, 16).to(torch.bfloat16) for _ in range(2))
    product = torch.empty(16, 16)
    with faithful():
        _matrix_product[(1,)](x, y, product, SIZE=16)
    assert_as_exact(product, x.float() @ y.float(), x.double() @ y.double())


@pytest.mark.parametrize("kernel", [_add_halves, _sum_halves])
def test_bfloat16_arithmetic_raises(kernel: triton.JITFunction) -> None:
    x = torch.ones(16, dtype=torch.bfloat16)
    with faithful(), pytest.raises(Exception, match="bfloat16"):
        kernel[(1,)](x, x.clone(), SIZE=16)


def test_nothing_is_left_patched() -> None:
    before = triton.runtime.interpreter.InterpreterBuilder.create_dot
    with faithful():
        assert triton.runtime.interpreter.InterpreterBuilder.create_dot is not before
    assert triton.runtime.interpreter.InterpreterBuilder.create_dot is before
