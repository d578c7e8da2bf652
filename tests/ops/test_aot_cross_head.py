"""The cross-head kernels through the real compiler, as ``test_aot_compile`` does WKV-7's."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

from tests.ops.aot_cross_head import QUICK_BUILDS
from tests.ops.aot_worker import CROSS_HEAD_BUILDS
from tests.ops.test_aot_compile import Compiled, cases

# Spilled bytes a thread, stores: the larger of Triton 3.6.0's and 3.7.1's; others spill nothing.
# Both gradients of a [2 N, N] matrix stay in registers. On sm_80 the operands of every product
# are in registers too, and nothing between 16 and 32 tokens and 4 and 16 warps spills less.
ALLOWED_SPILLS = {
    ("cross_head_forward_gated", "bfloat16", 64, 80): 32,
    ("cross_head_backward_gated", "bfloat16", 64, 80): 896,
    ("cross_head_backward_concat", "bfloat16", 64, 80): 560,
    ("cross_head_backward_gated", "bfloat16", 128, 90): 312,
    ("cross_head_backward_concat", "bfloat16", 128, 90): 112,
    ("cross_head_backward_gated", "float32", 64, 90): 88,
    ("cross_head_backward_concat", "float32", 64, 90): 112,
}
#: What one program may have, bytes (CUDA's programming guide, table of compute capabilities).
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


def assert_within_limits(build: dict[str, Any]) -> None:
    key = build["kernel"], build["dtype"], build["size"], build["arch"]
    assert build["spill_stores"] <= ALLOWED_SPILLS.get(key, 0), build
    assert 0 < build["registers"] <= 255, build
    assert build["warps"] * 32 * -(-build["registers"] // 8) * 8 <= 65536, build
    assert build["shared_bytes"] <= SHARED_MEMORY[build["arch"]], build


@pytest.mark.parametrize("name", cases(CROSS_HEAD_BUILDS, QUICK_BUILDS))
def test_a_kernel_compiles_within_its_limits(compiled_ahead: Compiled, name: str) -> None:
    assert_within_limits(compiled_ahead(name))


def test_what_is_compiled() -> None:
    on = {(build.kernel, build.arch) for build in CROSS_HEAD_BUILDS}
    kernels = {build.kernel for build in CROSS_HEAD_BUILDS}
    assert len(kernels) == 6
    assert on == {(kernel, arch) for kernel in kernels for arch in (80, 90, 100)}
    assert set(QUICK_BUILDS) <= set(CROSS_HEAD_BUILDS)
