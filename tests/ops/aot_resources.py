"""Compile WKV-7's kernels for GPUs that are not here; print what they use, a JSON line each:
registers, spills, shared memory, how many programs a multiprocessor holds, instructions, and the
shapes of tensor-core products.

    python -m tests.ops.aot_resources [--quick | --candidates]

Needs Triton, which brings ptxas along, and no GPU. TRITON_INTERPRET must not be set: this is the
real compiler, which rejects code that the interpreter accepts. Kernels are compiled as
``triton_launch`` launches them on a card with 132 multiprocessors and 256 heads.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.ops.aot_head_kernels import HEAD_KERNELS, head_arguments
from tests.ops.aot_instructions import disassembled, instruction_counts, tensor_products
from tests.ops.aot_occupancy import occupancy
from wuneng.ops.wkv7.triton_backward import wkv7_backward_kernel
from wuneng.ops.wkv7.triton_forward import wkv7_forward_kernel
from wuneng.ops.wkv7.triton_launch import (
    CANDIDATES,
    CHUNK,
    Launch,
    backward_launch,
    forward_launch,
    precision,
    segment_scan_launch,
    segment_states_launch,
    snapshot_launch,
)
from wuneng.ops.wkv7.triton_segments import (
    segment_gradients_kernel,
    segment_scan_kernel,
    segment_states_kernel,
)
from wuneng.ops.wkv7.triton_snapshot_kernels import (
    snapshot_gradients_kernel,
    snapshot_read_kernel,
    snapshot_state_gradients_kernel,
)
from wuneng.ops.wkv7.triton_state_gradients import wkv7_state_gradients_kernel
from wuneng.ops.wkv7.triton_step import STEP_WARPS, step_values, wkv7_step_kernel

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
HEADS, PROCESSORS = 256, 132
SCAN_KERNELS = {
    "forward": wkv7_forward_kernel,
    "state_gradients": wkv7_state_gradients_kernel,
    "backward": wkv7_backward_kernel,
}
SEGMENT_KERNELS = {
    "segment_states": segment_states_kernel,
    "segment_gradients": segment_gradients_kernel,
    "segment_scan": segment_scan_kernel,
}
SNAPSHOT_KERNELS = {
    "snapshot_read": snapshot_read_kernel,
    "snapshot_gradients": snapshot_gradients_kernel,
    "snapshot_state_gradients": snapshot_state_gradients_kernel,
}


@dataclass(frozen=True)
class Build:
    """One kernel as it would be launched on one architecture (90 is sm_90)."""

    kernel: str
    arch: int = 90
    size: int = 64
    dtype: torch.dtype = torch.bfloat16
    keeps_states: bool = True
    packed: bool = False
    launch: Launch | None = None

    def launch_parameters(self) -> Launch:
        if self.launch is not None:
            return self.launch
        chunk = CHUNK
        if self.kernel == "backward":
            return backward_launch(self.dtype, self.size, chunk)
        return forward_launch(self.dtype, self.size, chunk, HEADS, PROCESSORS)


BUILDS = (
    *(
        Build(kernel, arch, keeps_states=keeps)
        for arch in (80, 90, 100)
        for kernel, keeps in (
            ("forward", False),
            ("forward", True),
            ("state_gradients", True),
            ("backward", True),
        )
    ),
    *(Build(kernel, size=size) for kernel in SCAN_KERNELS for size in (32, 128)),
    *(Build(kernel, dtype=torch.float32) for kernel in SCAN_KERNELS),
    Build("backward", dtype=torch.float16),
    Build("backward", packed=True),
    Build("step"),
    *(
        Build(kernel, arch)
        for arch in (80, 90, 100)
        for kernel in (*SEGMENT_KERNELS, *SNAPSHOT_KERNELS)
    ),
    *(Build(kernel, size=128) for kernel in (*SEGMENT_KERNELS, *SNAPSHOT_KERNELS)),
    *(Build(kernel, dtype=torch.float32) for kernel in (*SEGMENT_KERNELS, *SNAPSHOT_KERNELS)),
    *(Build(kernel, packed=True) for kernel in SNAPSHOT_KERNELS),
    *(Build("segment_states", arch, keeps_states=False) for arch in (80, 90, 100)),
    *(Build(kernel, arch) for arch in (80, 90, 100) for kernel in HEAD_KERNELS),
    *(Build(kernel, size=128) for kernel in HEAD_KERNELS),
)

QUICK_BUILDS = tuple(
    Build(kernel)
    for kernel in (
        *("forward", "backward", "step", "readout_backward", "head_step"),
        *("segment_gradients", "snapshot_gradients"),
        "projection_gradients",
    )
)


def scan_arguments(build: Build) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """Kernel, types of its run-time arguments (None: absent), constants, launch parameters."""
    launch = build.launch_parameters()
    tensor = POINTERS[build.dtype]
    part = tensor if launch.values == build.size else "*fp32"
    types: dict[str, str | None] = dict.fromkeys(("r", "w", "k", "v", "a", "b", "y", "dy"), tensor)
    types |= {"d" + name: part for name in "rwkab"} | {"dv": tensor}
    types |= dict.fromkeys(("initial_state", "final_state"), "*fp32")
    types |= dict.fromkeys(("d_initial_state", "d_final_state"), "*fp32")
    types |= dict.fromkeys(
        ("boundary_states", "chunk_gradients"), tensor if build.keeps_states else None
    )
    types["d_boundary_states"] = None
    types |= dict.fromkeys(("sequences", "tokens", "rows", "heads"), "i32") | {
        "block_stride": "i64"
    }
    types["table"] = "*i64" if build.packed else None
    constants = {
        "SIZE": build.size,
        "VALUES": launch.values,
        "CHUNK": launch.chunk,
        "HAS_INITIAL": True,
        "HAS_FINAL": True,
        "HAS_TABLE": build.packed,
        "HAS_BOUNDARIES": False,
        "STORE_BOUNDARIES": build.keeps_states,
        **precision(build.dtype),
    }
    return SCAN_KERNELS[build.kernel], types, constants, launch


def step_arguments(build: Build) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """As scan_arguments, for the one-token kernel."""
    types: dict[str, str | None] = dict.fromkeys("rwkvaby", POINTERS[build.dtype])
    types |= {"state": "*fp32", "new_state": "*fp32"}
    values = step_values(build.size)
    constants = {"SIZE": build.size, "VALUES": values, "HAS_STATE": True}
    return wkv7_step_kernel, types, constants, Launch(1, values, STEP_WARPS, 1)


def segment_arguments(build: Build) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """As scan_arguments, for the kernels of triton_segments."""
    chunk = CHUNK
    launch = segment_states_launch(build.dtype, build.size, chunk, HEADS, PROCESSORS)
    if build.kernel == "segment_scan":
        launch = segment_scan_launch(build.size)
    tensor = POINTERS[build.dtype]
    types: dict[str, str | None] = dict.fromkeys(
        ("r", "w", "k", "v", "a", "b", "dy", "d_boundary_states"), tensor
    )
    types |= {"table": "*i64", "ranges": "*i64", "idle": "*i1", "segments": "i32", "heads": "i32"}
    types |= dict.fromkeys(("results", "outer", "entering"), "*fp32")
    constants = {
        "SIZE": build.size,
        "VALUES": launch.values,
        "CHUNK": launch.chunk,
        "HAS_BOUNDARIES": True,
        "HAS_OUTER": True,
        "REVERSE": False,
        **precision(build.dtype),
    }
    return SEGMENT_KERNELS[build.kernel], types, constants, launch


def snapshot_arguments(build: Build) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """As scan_arguments, for the kernels of triton_snapshot_kernels; packed is also continued."""
    launch = snapshot_launch(build.dtype, build.size, every=64)
    tensor, table = POINTERS[build.dtype], "*i64" if build.packed else None
    types: dict[str, str | None] = dict.fromkeys(
        ("r", "y", "weights", "states", "mixed", "d_mixed", "dr", "dy", "d_weights", "d_states"),
        tensor,
    )
    types |= {"extents": table, "tiles": table, "kept": table, "d_ring_out": "*fp32"}
    types |= dict.fromkeys(("ring", "d_ring"), "*fp32" if build.packed else None)
    types |= dict.fromkeys(("tokens", "rows", "per_sequence", "heads", "every"), "i32")
    constants = {
        "CHUNK": 16,
        "TILE": launch.chunk,
        "SIZE": build.size,
        "VALUES": launch.values,
        "COUNT": 3,
        "HAS_RING": build.packed,
        "HAS_D_RING_OUT": True,
        "HAS_TABLE": build.packed,
        **precision(build.dtype),
    }
    return SNAPSHOT_KERNELS[build.kernel], types, constants, launch


ARGUMENTS = {
    "step": step_arguments,
    **dict.fromkeys(SEGMENT_KERNELS, segment_arguments),
    **dict.fromkeys(SNAPSHOT_KERNELS, snapshot_arguments),
    **dict.fromkeys(HEAD_KERNELS, head_arguments),
}


def compile_ahead(build: Build) -> dict[str, Any]:
    """Registers, spilled bytes a thread, shared memory, occupancy and instructions of a build."""
    arguments = ARGUMENTS.get(build.kernel, scan_arguments)
    kernel, types, constants, launch = arguments(build)
    signature, fixed, attributes = {}, {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = None if name in constants else types[name]
        signature[name] = kind or "constexpr"
        if kind is None:
            fixed[(index,)] = constants.get(name)
        elif kind.startswith("*"):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", build.arch, 32),
        options={"num_warps": launch.warps, "num_stages": launch.stages},
    )
    ptx = compiled.asm["ptx"]
    report, sass = assembled(ptx, build.arch)
    shared_bytes = compiled.metadata.shared
    held = occupancy(report["registers"], launch.warps, shared_bytes, build.arch)
    instructions, in_loop = instruction_counts(sass)
    return {
        "kernel": build.kernel,
        "arch": build.arch,
        "size": build.size,
        "dtype": str(build.dtype).removeprefix("torch."),
        "keeps_states": build.keeps_states,
        "packed": build.packed,
        **asdict(launch),
        **report,
        "shared_bytes": shared_bytes,
        "held_programs": held.programs,
        "held_warps": held.warps,
        "bound": held.bound,
        "instructions": instructions,
        "in_loop": in_loop,
        "tensor_products": tensor_products(ptx),
    }


def assembled(ptx: str, arch: int) -> tuple[dict[str, int], str]:
    """What ptxas reports of a kernel (registers, spilled bytes stored and loaded, per thread), and
    the machine code that it makes."""
    binaries = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    assembler = binaries / ("ptxas-blackwell" if arch >= 100 else "ptxas")
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={target[1]}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        sass = disassembled(cubin, binaries)
    patterns = {
        "registers": r"Used (\d+) registers",
        "spill_stores": r"(\d+) bytes spill stores",
        "spill_loads": r"(\d+) bytes spill loads",
    }
    found = {name: re.search(pattern, done.stderr) for name, pattern in patterns.items()}
    return {name: int(number[1]) if number else 0 for name, number in found.items()}, sass


def main() -> None:
    builds = BUILDS
    if "--quick" in sys.argv[1:]:
        builds = QUICK_BUILDS
    if "--candidates" in sys.argv[1:]:
        builds = tuple(
            Build(kernel, launch=launch)
            for kernel, launches in CANDIDATES.items()
            for launch in launches
        )
    for build in builds:
        print(json.dumps(compile_ahead(build)), flush=True)


if __name__ == "__main__":
    main()
