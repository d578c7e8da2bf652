"""As ``aot_resources``, for the cross-head kernels: python -m tests.ops.aot_cross_head [--quick]"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton

from tests.ops.aot_resources import ARGUMENTS, POINTERS, Build, compile_ahead
from wuneng.ops.cross_head.triton_kernels import (
    KINDS,
    backward_launch,
    cross_head_backward_kernel,
    cross_head_forward_kernel,
    forward_launch,
)
from wuneng.ops.wkv7.triton_launch import Launch, precision

NAMES = [f"cross_head_{way}_{kind}" for way in ("forward", "backward") for kind in KINDS]
GROUP = 4  # attention heads of a state head

BUILDS = (
    *(Build(name, arch) for arch in (80, 90, 100) for name in NAMES),
    *(Build(name, size=size) for size in (16, 128) for name in NAMES),
    *(Build(name, dtype=torch.float32) for name in NAMES),
)
QUICK_BUILDS = tuple(Build(name) for name in NAMES if name.endswith("gated"))


def arguments(build: Build) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """As ``aot_resources.scan_arguments``; activations in build's type, weights in float32."""
    _, _, way, kind = build.kernel.split("_")
    forward = way == "forward"
    kernel = cross_head_forward_kernel if forward else cross_head_backward_kernel
    launch = (forward_launch if forward else backward_launch)(build.dtype, build.size)
    tensor, additive = POINTERS[build.dtype], kind == "additive"
    types: dict[str, str | None] = dict.fromkeys(("A", "R", "branch", "d_branch", "dA"), tensor)
    types |= {"dR": tensor, "changed": tensor if additive else None, "eps": "fp32"}
    types |= dict.fromkeys(
        ("scale", "mix", "norm", "alpha_or_matrix", "d_vectors", "d_mix"), "*fp32"
    )
    types |= {"beta_or_bias": None if kind == "concat" else "*fp32", "d_changed": types["changed"]}
    types |= {"d_alpha": "*fp32" if additive else None}
    types |= {"d_matrix": None if additive else "*fp32"}
    types |= dict.fromkeys(("tokens", "heads", "attention_heads", "scale_stride"), "i32")
    mode = precision(build.dtype)
    constants = {
        "KIND": KINDS[kind],
        "SIZE": build.size,
        "GROUP": GROUP,
        "SHARED": 1,
        "GROUP_ROOM": triton.next_power_of_2(GROUP),
        "BLOCK": launch.block,
        "OPERAND": mode["OPERAND"],
        "PRECISION": mode["PRECISION"],
    }
    sizes = Launch(launch.block, build.size, launch.warps, launch.stages)
    return kernel, types, constants, sizes


ARGUMENTS.update(dict.fromkeys(NAMES, arguments))


def main() -> None:
    for build in QUICK_BUILDS if "--quick" in sys.argv[1:] else BUILDS:
        print(json.dumps(compile_ahead(build)), flush=True)


if __name__ == "__main__":
    main()
