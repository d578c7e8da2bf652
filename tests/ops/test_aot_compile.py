"""The kernels through the real compiler, for GPUs that are not here: registers, spills, memory.

The interpreter accepts code that the compiler rejects, and says nothing of resources. A spill
allowance is what was accepted when the launch table was chosen; growing past it is a regression to
look into, not a number to raise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

# Spilled bytes a thread, stores, at head size 64: the larger of Triton 3.6.0's and 3.7.1's.
ALLOWED_SPILLS = {
    ("forward", "bfloat16", 80): 96,
    ("forward", "bfloat16", 90): 8,
    ("forward", "bfloat16", 100): 8,
    ("backward", "bfloat16", 80): 256,
    ("backward", "bfloat16", 90): 128,
    ("backward", "bfloat16", 100): 208,
    ("backward", "float16", 90): 128,
    # Three tf32 passes hold three copies of the operands: for accuracy, not for speed.
    ("forward", "float32", 90): 576,
    ("backward", "float32", 90): 1024,
    ("step", "bfloat16", 90): 0,
}
ALLOWED_SPILLS_SIZE_128 = {"forward": 0, "backward": 336}

# Shared memory of one multiprocessor, bytes; two programs should fit side by side.
SHARED_MEMORY = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}


def compiled(repository: Path, cache: Path, *arguments: str) -> list[dict[str, Any]]:
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.aot_resources", *arguments],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_within_limits(build: dict[str, Any]) -> None:
    allowed = ALLOWED_SPILLS[build["kernel"], build["dtype"], build["arch"]]
    if build["size"] == 128:
        allowed = ALLOWED_SPILLS_SIZE_128[build["kernel"]]
    assert build["spill_stores"] <= allowed, build
    assert 0 < build["registers"] <= 255, build
    # Two programs on a multiprocessor: half its memory, less the kilobyte each is charged.
    assert build["shared_bytes"] <= SHARED_MEMORY[build["arch"]] // 2 - 1024, build
    # And 65,536 registers for eight warps, two programs of four or one of eight.
    assert 8 * 32 * -(-build["registers"] // 8) * 8 <= 65536, build
    assert build["warps"] <= 8, build


def test_hopper(repository: Path, tmp_path: Path) -> None:
    builds = compiled(repository, tmp_path, "--quick")
    assert [build["kernel"] for build in builds] == ["forward", "backward", "step"]
    for build in builds:
        assert_within_limits(build)


@pytest.mark.slow
def test_every_architecture_head_size_and_type(repository: Path, tmp_path: Path) -> None:
    builds = compiled(repository, tmp_path)
    assert {build["arch"] for build in builds} == {80, 90, 100}
    assert {build["size"] for build in builds} == {32, 64, 128}
    for build in builds:
        assert_within_limits(build)
