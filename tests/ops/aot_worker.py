"""Compile ahead of time on request: a name of ``BUILDS`` a line in, its resources as JSON out.

    python -m tests.ops.aot_worker

A process of its own because tests run in Triton's interpreter, and a lasting one because it is the
imports that cost, not the small kernels. What cannot be compiled is answered with ``error``.
"""

from __future__ import annotations

import json
import sys
import traceback

import torch

from tests.ops import aot_cross_head, aot_resources
from tests.ops.aot_resources import Build, compile_ahead


def name_of(build: Build) -> str:
    """``backward-sm_90-64-bfloat16-packed``: unique, and the id of the build's test case."""
    parts = [build.kernel, f"sm_{build.arch}", str(build.size)]
    parts.append(str(build.dtype).removeprefix("torch."))
    parts += ["packed"] * build.packed + ["stateless"] * (not build.keeps_states)
    return "-".join(parts)


SCAN_BUILDS = tuple(dict.fromkeys(aot_resources.BUILDS))
CROSS_HEAD_BUILDS = tuple(dict.fromkeys(aot_cross_head.BUILDS))
BUILDS = {name_of(build): build for build in (*SCAN_BUILDS, *CROSS_HEAD_BUILDS)}


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        name = line.strip()
        try:
            answer = compile_ahead(BUILDS[name])
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps({"name": name, **answer}), flush=True)


if __name__ == "__main__":
    main()
