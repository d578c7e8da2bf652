"""What the kernels use on sm_90, as the table of docs/kernels.md: python -m tests.ops.aot_table"""

from __future__ import annotations

from typing import Any

import torch

from tests.ops import aot_cross_head, aot_resources
from tests.ops.aot_resources import Build, compile_ahead

HEADER = (
    "| sm_90, N = 64 | registers | spilled | shared bytes | programs at once | their warps "
    "| bound by | instructions | in the longest loop | tensor-core products |\n"
    "|---|---:|---:|---:|---:|---:|---|---:|---:|---|"
)
#: The others differ in what is left out, which takes less.
SHOWN = tuple(
    build
    for build in dict.fromkeys((*aot_resources.BUILDS, *aot_cross_head.BUILDS))
    if (build.arch, build.size, build.dtype, build.packed) == (90, 64, torch.bfloat16, False)
    and not build.kernel.endswith(("_bare", "_half"))
    and (build.keeps_states or build.kernel == "forward")
)


#: What the page calls the scan's kernels, by whether states are kept.
NAMES = {
    ("forward", False): "forward, inference",
    ("forward", True): "forward, training",
    ("state_gradients", True): "backward, states",
    ("backward", True): "backward, chunks",
}


def row(build: Build, found: dict[str, Any]) -> str:
    """One line of Markdown from what ``compile_ahead`` says of the build."""
    products = (f"{count} {name}" for name, count in found["tensor_products"].items())
    cells = (
        NAMES.get((build.kernel, build.keeps_states), build.kernel.replace("_", " ")),
        found["registers"],
        found["spill_stores"],
        f"{found['shared_bytes']:,}",
        found["held_programs"],
        found["held_warps"],
        found["bound"],
        f"{found['instructions']:,}",
        f"{found['in_loop']:,}",
        ", ".join(products),
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    print(HEADER)
    for build in SHOWN:
        print(row(build, compile_ahead(build)), flush=True)


if __name__ == "__main__":
    main()
