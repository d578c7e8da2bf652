"""The kernels through the real compiler, for GPUs that are not here: registers, spills, memory.

The interpreter accepts code that the compiler rejects, and says nothing of resources. A spill
allowance is what was accepted when the launch table was chosen; growing past it is a regression to
look into, not a number to raise.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

import torch
import triton

from tests.ops.aot_resources import QUICK_BUILDS, Build
from tests.ops.aot_table import HEADER, SHOWN, row
from tests.ops.aot_worker import BUILDS, CROSS_HEAD_BUILDS, SCAN_BUILDS, name_of

#: What a build's name is compiled to: its resources.
Compiled = Callable[[str], dict[str, Any]]

# Spilled bytes a thread, stores, at head size 64: the larger of Triton 3.6.0's and 3.7.1's. None
# is allowed of what is not listed. A scan with two warps spills some and is faster than one with
# four that spills none (docs/kernels.md).
ALLOWED_SPILLS = {
    ("forward", "bfloat16", 80): 68,
    ("forward", "bfloat16", 90): 76,
    ("forward", "bfloat16", 100): 88,
    ("state_gradients", "bfloat16", 80): 48,
    ("state_gradients", "bfloat16", 90): 44,
    ("state_gradients", "bfloat16", 100): 60,
    ("backward", "bfloat16", 80): 128,
    # Three tf32 passes hold three copies of the operands: for accuracy, not for speed.
    ("forward", "float32", 90): 556,
    ("state_gradients", "float32", 90): 8,
    ("backward", "float32", 90): 948,
    ("step", "bfloat16", 90): 0,
    ("segment_states", "bfloat16", 80): 36,
    ("segment_states", "float32", 90): 8,
    ("segment_gradients", "float32", 90): 8,
}
ALLOWED_SPILLS_SIZE_128 = {
    "forward": 208,
    "state_gradients": 52,
    "backward": 20,
    "segment_gradients": 100,
}

# Shared memory of one multiprocessor, bytes; two programs should fit side by side.
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


def assert_within_limits(build: dict[str, Any]) -> None:
    allowed = ALLOWED_SPILLS.get((build["kernel"], build["dtype"], build["arch"]), 0)
    if build["size"] == 128:
        allowed = ALLOWED_SPILLS_SIZE_128.get(build["kernel"], 0)
    assert build["spill_stores"] <= allowed, build
    assert 0 < build["registers"] <= 255, build
    # Two programs on a multiprocessor: half its memory, less the kilobyte each is charged.
    assert build["shared_bytes"] <= SHARED_MEMORY[build["arch"]] // 2 - 1024, build
    # And 65,536 registers for eight warps, two programs of four or one of eight.
    assert 8 * 32 * -(-build["registers"] // 8) * 8 <= 65536, build
    assert build["warps"] <= 8, build
    assert build["held_programs"] >= 1, build
    assert 0 <= build["in_loop"] < build["instructions"], build


def cases(builds: Iterable[Build], quick: Container[Build]) -> list[Any]:
    """A test case for each build, those that are not ``quick`` marked slow."""
    return [
        pytest.param(name_of(build), marks=[] if build in quick else pytest.mark.slow)
        for build in builds
    ]


@pytest.mark.parametrize("name", cases(SCAN_BUILDS, QUICK_BUILDS))
def test_a_kernel_compiles_within_its_limits(compiled_ahead: Compiled, name: str) -> None:
    assert_within_limits(compiled_ahead(name))


@pytest.mark.skipif(triton.__version__ != "3.7.1", reason="the page's table is of Triton 3.7.1")
@pytest.mark.parametrize(
    "kernel", ["forward", "step", "snapshot_gradients", "cross_head_backward_gated"]
)
def test_the_pages_table(repository: Path, compiled_ahead: Compiled, kernel: str) -> None:
    build = next(b for b in SHOWN if b.kernel == kernel and b.keeps_states)
    page = (repository / "docs" / "kernels.md").read_text(encoding="utf-8").splitlines()
    assert row(build, compiled_ahead(name_of(build))) in page
    start = page.index(HEADER.splitlines()[0])
    assert page[start + 1 : start + 3 + len(SHOWN)][-1] == "", "a row for each that is shown"


@pytest.mark.parametrize(("kernel", "multiplies"), [("forward", True), ("step", False)])
def test_products_are_on_tensor_cores(
    compiled_ahead: Compiled, kernel: str, multiplies: bool
) -> None:
    build = compiled_ahead(name_of(Build(kernel)))
    assert bool(build["tensor_products"]) == multiplies
    assert all("bf16" in name for name in build["tensor_products"])


def test_what_is_compiled() -> None:
    """Every kernel on every architecture, and at each head size; the quick ones among them."""
    kernels = {build.kernel for build in SCAN_BUILDS}
    assert {"forward", "backward", "projection_gradients", "head_step", "step"} <= kernels
    on = {(build.kernel, build.arch) for build in SCAN_BUILDS}
    assert on >= {(kernel, arch) for kernel in kernels - {"step"} for arch in (80, 90, 100)}
    assert {build.size for build in SCAN_BUILDS} == {32, 64, 128}
    types = {torch.bfloat16, torch.float16, torch.float32}
    assert {build.dtype for build in SCAN_BUILDS} == types
    assert set(QUICK_BUILDS) <= set(SCAN_BUILDS)
    assert len(BUILDS) == len(SCAN_BUILDS) + len(CROSS_HEAD_BUILDS), "two builds of one name"
