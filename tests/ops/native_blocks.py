"""The C headers' structures, read from their text, and tensors that blocks are packed of."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from wuneng.ops import LinearPair, LowRank
from wuneng.ops.cross_head import native as cross_head

HEADERS = (
    *("state_head/state_head.h", "low_rank/low_rank.h", "cross_head/cross_head.h"),
    *("cross_head/cross_head_pass.h", "rms_norm/rms_norm.h"),
    *("native/hybrid_token.h", "native/model_token.h"),
)


def structures(directory: Path) -> dict[str, type[ctypes.Structure]]:
    """Every ``typedef struct`` of the headers, by name."""
    found: dict[str, type[ctypes.Structure]] = {}
    for header in HEADERS:
        text = re.sub(r"/\*.*?\*/", "", (directory / header).read_text(), flags=re.S)
        for body, name in re.findall(r"typedef struct \{(.*?)\}\s*(\w+);", text, flags=re.S):
            fields = [f for line in body.split(";") for f in _fields(line.strip(), found)]
            assert fields, f"{name} in {header} was not understood"
            found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def _fields(line: str, known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """``const float *x, *y`` as two addresses, ``int64_t slots[3]`` as an array, ``*x[3]`` too."""
    if not line:
        return
    match = re.fullmatch(r"(?:const )?(\w+)\s+(.*)", line, flags=re.S)
    assert match, line
    kind, names = match.groups()
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    for name in (x.strip() for x in names.split(",")):
        array = re.fullmatch(r"(\*?\w+)\[(\d+)\]", name)
        name = array[1] if array else name
        one = ctypes.c_int64 if name.startswith("*") else (known | numbers)[kind]
        yield name.removeprefix("*"), one * int(array[2]) if array else one  # addresses: numbers


def read(kind: Any, block: bytes) -> Any:
    assert len(block) == ctypes.sizeof(kind)
    return kind.from_buffer_copy(block)


X = torch.randn(3, 1, 12)
WEIGHTS = [
    LowRank(torch.randn(12, rank), torch.randn(rank, 32), torch.randn(32)) for rank in (5, 7)
]


def check_low_rank(found: Any, weights: LowRank | LinearPair, between: int) -> None:
    linear = isinstance(weights, LinearPair)
    numbers = (found.tokens, found.size, found.rank, found.width, found.between, found.linear)
    assert numbers == (3, 12, weights.up.shape[linear], 32, between, linear)
    addresses = [0 if x is None else x.data_ptr() for x in weights]
    assert [found.down, found.up, found.bias] == addresses


MIDDLE = {
    "scale": torch.randn(2),
    "mix": torch.randn(2, 2),
    "norm": torch.randn(2, 16),
    "alpha_or_matrix": torch.randn(4, 16),
    "beta_or_bias": torch.randn(2, 16),
}


def check_cross_head(found: Any, tokens: int) -> None:
    numbers = (found.tokens, found.heads, found.state_heads, found.kind, found.scales, found.eps)
    assert numbers == (tokens, 4, 2, cross_head.KINDS["additive"], 2, 1e-5)
    for name, x in MIDDLE.items():
        assert getattr(found, name) == x.data_ptr(), name
