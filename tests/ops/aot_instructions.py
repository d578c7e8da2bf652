"""What a compiled kernel is made of: instructions, and products on tensor cores.

Counted in the code, not while it runs: an instruction of a loop counts once. ``in_loop`` are those
of the longest loop, which for a scan is what a warp does for each chunk.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)$")
_LABEL = re.compile(r"^\s*(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
#: Their shape and the type of their operands: m16n8k16 and bf16, or m64n32k16 and tf32.
_PRODUCT = re.compile(
    r"\b(wgmma\.mma_async|mma)\.sync\.aligned\.(m\d+n\d+k\d+)\.(?:row\.col\.)?f\d+\.(\w+)"
)
_FIFTH_GENERATION = re.compile(r"\btcgen05\.mma\.[\w:.]*kind::(\w+)")


def tensor_products(ptx: str) -> dict[str, int]:
    """Products on tensor cores in PTX, by name: ``mma m16n8k16 bf16``, ``wgmma m64n32k16 bf16``;
    sm_100's ``tcgen05 f16``, whose shape is in a register."""
    found = [
        f"{name.partition('.')[0]} {shape} {kind}" for name, shape, kind in _PRODUCT.findall(ptx)
    ]
    found += [f"tcgen05 {kind}" for kind in _FIFTH_GENERATION.findall(ptx)]
    return dict(sorted(Counter(found).items()))


def disassembled(cubin: Path, binaries: Path) -> str:
    """The machine's own code (SASS), as Triton's nvdisasm in ``binaries`` writes it."""
    command = [str(binaries / "nvdisasm"), "-c", str(cubin)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def instruction_counts(sass: str) -> tuple[int, int]:
    """All instructions, and those of the longest loop (0: there is none). What fills the code's end
    is left out: NOP, and the branch to itself behind the last EXIT."""
    labels: dict[str, int] = {}
    count, longest = 0, 0
    for line in sass.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = count
        found = _INSTRUCTION.match(line)
        if found is None or found[1] == "NOP":
            continue
        target = _TARGET.search(found[2]) if found[1].startswith("BRA") else None
        start = labels.get(target[1]) if target else None
        if start == count:
            continue
        count += 1
        if start is not None:
            longest = max(longest, count - start)
    return count, longest
