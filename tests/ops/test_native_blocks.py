"""What Python packs is what the C headers say: every field's place, type and meaning.

The structures are read from the headers; blocks are those that the operators hand to the kernels,
intercepted, with tensors' addresses and numbers that are all different.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from wuneng.ops import LowRank
from wuneng.ops.cross_head import native as cross_head
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadWeights
from wuneng.ops.low_rank import native as low_rank
from wuneng.ops.native import hybrid_token, model_token
from wuneng.ops.state_head import native as state_head
from wuneng.ops.state_head import native_arguments as arguments

HEADERS = (
    *("state_head/state_head.h", "low_rank/low_rank.h", "cross_head/cross_head.h"),
    *("native/hybrid_token.h", "native/model_token.h"),
)
LETTERS = ("r", "w", "k", "v", "a", "b", "gate")


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
    """``const float *x, *y`` as two addresses, ``int64_t slots[3]`` as an array."""
    if not line:
        return
    match = re.fullmatch(r"(?:const )?(\w+)\s+(.*)", line, flags=re.S)
    assert match, line
    kind, names = match.groups()
    numbers = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
    for name in (x.strip() for x in names.split(",")):
        array = re.fullmatch(r"(\w+)\[(\d+)\]", name)
        if name.startswith("*"):
            yield name[1:], ctypes.c_int64  # an address, compared as a number
        elif array:
            yield array[1], numbers[kind] * int(array[2])
        else:
            yield name, known[kind] if kind in known else numbers[kind]


@pytest.fixture(scope="module")
def blocks(repository: Path) -> dict[str, Any]:
    return structures(repository / "wuneng" / "ops")


def test_the_headers_are_read(blocks: dict[str, Any]) -> None:
    assert list(blocks) == [
        *("Rows", "Arguments", "Product", "LowRank", "CrossHead", "HybridToken", "TokenInputs"),
        *("TokenLayer", "TokenModel", "TokenCache", "TokenCall"),
    ]
    assert [name for name, _ in blocks["Rows"]._fields_] == ["data", "row"]
    assert all(ctypes.sizeof(kind) % 8 == 0 for kind in blocks.values())


def test_types_and_sizes(blocks: dict[str, Any]) -> None:
    """Field by field the same eight bytes, whole numbers and addresses here, fractions there."""
    forward, backward = arguments._FORWARD, arguments._BACKWARD
    assert _letters(blocks["Arguments"]) == _expanded(forward) + _expanded(backward)
    for name, packed in {
        "Product": low_rank.PRODUCT,
        "LowRank": low_rank.LOW_RANK,
        "CrossHead": cross_head.CROSS_HEAD,
        "TokenInputs": hybrid_token._INPUTS,
        "TokenLayer": model_token._LAYER,
        "TokenModel": model_token._MODEL,
        "TokenCache": model_token._CACHE,
        "TokenCall": model_token._CALL,
    }.items():
        assert _letters(blocks[name]) == _expanded(packed), name


def _letters(kind: Any) -> str:
    """``q`` or ``d`` for each field, those of structures inside too."""
    out = ""
    for _, field in kind._fields_:
        if isinstance(field, type) and issubclass(field, ctypes.Structure):
            out += _letters(field)
        elif hasattr(field, "_length_"):
            out += "q" * field._length_
        else:
            out += "d" if field is ctypes.c_double else "q"
    return out


def _expanded(packed: struct.Struct) -> str:
    assert packed.format.startswith("="), "without padding"
    return "".join(x * int(n or 1) for n, x in re.findall(r"(\d*)([a-z])", packed.format))


def read(kind: Any, block: bytes) -> Any:
    assert len(block) == ctypes.sizeof(kind)
    return kind.from_buffer_copy(block)


def test_state_head(blocks: dict[str, Any]) -> None:
    numbers = iter(range(1, 1000))

    def rows(count: int) -> tuple[tuple[int, int], ...]:
        return tuple((next(numbers), next(numbers)) for _ in range(count))

    def some(count: int) -> tuple[int, ...]:
        return tuple(next(numbers) for _ in range(count))

    sizes, bounds, inputs, weights = some(4), next(numbers), rows(7), some(8)
    carry, states, out, boundaries = some(7), some(2), rows(1)[0], some(2)
    block = arguments.forward_block(
        sizes, bounds, (True, 1.5, 0.25), inputs, weights, carry, states, out, boundaries
    )
    gradients, ends, parts = rows(8), some(2), next(numbers)
    found = read(blocks["Arguments"], block + arguments.backward_block(gradients, ends, parts))
    assert (found.sequences, found.heads, found.threads, found.chunk) == sizes
    assert (found.bounds, found.raw, found.a_max, found.norm_eps) == (bounds, 1, 1.5, 0.25)
    assert HeadInputs._fields == LETTERS
    assert tuple((getattr(found, x).data, getattr(found, x).row) for x in LETTERS) == inputs
    assert tuple(getattr(found, x) for x in HeadWeights._fields) == weights
    names = [f"{which}_{letter}" for which in ("carry", "last") for letter in "rkv"]
    assert tuple(getattr(found, x) for x in (*names, "carry_row")) == carry
    assert (found.state, found.final_state) == states
    assert (found.out.data, found.out.row) == out
    assert (found.boundaries, found.boundary_rows) == boundaries
    names = ["d_out", *(f"d{x}" for x in "rwkvab"), "d_gate"]
    assert tuple((getattr(found, x).data, getattr(found, x).row) for x in names) == gradients
    assert (found.d_final_state, found.d_state, found.d_weights) == (*ends, parts)
    assert len(arguments.NO_BACKWARD) == arguments._BACKWARD.size


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, ...]]:
    """The blocks that reach a kernel, which is not run."""
    calls: list[tuple[bytes, ...]] = []

    def note(*given: bytes) -> int:
        calls.append(given)
        return 0

    names = ("low_rank", "projections", "cross_head", "hybrid_token", "state_head_forward")
    names += ("model_token",)
    kernels = SimpleNamespace(**dict.fromkeys(names, note))
    for module in (low_rank, cross_head, hybrid_token, model_token, state_head):
        monkeypatch.setattr(module, "_kernels", lambda _: kernels)
    return calls


X = torch.randn(3, 1, 12)
WEIGHTS = [
    LowRank(torch.randn(12, rank), torch.randn(rank, 32), torch.randn(32)) for rank in (5, 7)
]


def check_low_rank(found: Any, weights: LowRank, tanh: bool) -> None:
    numbers = (found.tokens, found.size, found.rank, found.width, found.tangent)
    assert numbers == (3, 12, weights.up.shape[0], 32, int(tanh))
    assert (found.down, found.up, found.bias) == tuple(x.data_ptr() for x in weights)


def test_projections(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    receptance = torch.randn(32, 12)
    decay, rate = WEIGHTS
    r, w, a = low_rank.projections(16, X, receptance, decay, rate)
    product, *pair = handed[0]
    found = read(blocks["Product"], product)
    assert (found.tokens, found.size, found.width) == (3, 12, 32)
    assert (found.x, found.weight, found.out) == tuple(x.data_ptr() for x in (X, receptance, r))
    for block, weights, out, tanh in zip(pair, WEIGHTS, (w, a), (True, False), strict=True):
        found = read(blocks["LowRank"], block)
        check_low_rank(found, weights, tanh)
        assert (found.x, found.out) == (X.data_ptr(), out.data_ptr())


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


def test_cross_head(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    A, R = torch.randn(3, 1, 4, 16), torch.randn(3, 1, 2, 16)
    changed, branch = cross_head.cross_head("additive", A, R, *MIDDLE.values(), eps=1e-5)
    found = read(blocks["CrossHead"], handed[0][0])
    check_cross_head(found, 3)
    assert (found.attention, found.readout) == (A.data_ptr(), R.data_ptr())
    assert (found.changed, found.branch) == (changed.data_ptr(), branch.data_ptr())


def test_a_layers_token(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    head = HeadWeights(*(torch.randn(32) for _ in range(8)))
    receptance, branch = torch.randn(32, 12), torch.randn(12, 64)
    weights = hybrid_token.TokenWeights(receptance, *WEIGHTS, head, *MIDDLE.values(), branch)
    options = hybrid_token.TokenOptions(
        HeadOptions(2, 16, a_max=2.0, norm_eps=1e-3, letters="kr"), "additive", 4, 1e-5
    )
    key, value, attention = torch.randn(3, 1, 48), torch.randn(3, 1, 80), torch.randn(3, 1, 64)
    state, carry = torch.randn(3, 2, 16, 16), torch.randn(3, 64)
    token = hybrid_token.HybridToken(weights, options, 3)
    changed, out, final, last = token(X, key, value, attention, state, carry)
    plan, given = (
        read(blocks["HybridToken"], handed[0][0]),
        read(blocks["TokenInputs"], handed[0][1]),
    )
    assert (plan.receptance.width, plan.receptance.weight) == (32, receptance.data_ptr())
    for found, own, tanh in zip((plan.decay, plan.rate), WEIGHTS, (True, False), strict=True):
        check_low_rank(found, own, tanh)
    assert (plan.head.sequences, plan.head.heads, plan.head.threads) == (3, 2, 1)
    assert (plan.head.raw, plan.head.a_max, plan.head.norm_eps) == (1, 2.0, 1e-3)
    for name, x in head._asdict().items():
        assert getattr(plan.head, name) == x.data_ptr(), name
    # Working memory leads from one kernel to the next.
    assert plan.head.r.data == plan.receptance.out
    assert (plan.head.w.data, plan.head.a.data) == (plan.decay.out, plan.rate.out)
    assert plan.head.out.data == plan.cross.readout
    assert (plan.head.carry_row, plan.head.state, plan.head.d_weights) == (64, 0, 0)
    check_cross_head(plan.cross, 3)
    assert (plan.branch.x, plan.branch.size, plan.branch.width) == (plan.cross.branch, 64, 12)
    assert plan.branch.weight == branch.data_ptr()
    assert list(plan.slots) == [1, 0, -1]
    tensors = {"x": X, "key": key, "value": value, "attention": attention, "state": state}
    tensors |= {
        "final_state": final,
        "carry": carry,
        "last": last,
        "changed": changed,
        "branch": out,
    }
    for name, x in tensors.items():
        assert getattr(given, name) == x.data_ptr(), name
    assert (given.key_row, given.value_row) == (48, 80)


def test_a_models_token(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]], repository: Path
) -> None:
    """Two layers, the second with state heads; B 3, D 12, H 4, G 2, N 16, F 20, S 2."""
    tensors = [torch.randn(12), *(torch.randn(n, 12) for n in (64, 32, 32)), torch.randn(12, 64)]
    tensors += [torch.randn(n) for n in (64, 32, 32, 12, 16, 16, 12)]
    tensors += [torch.randn(20, 12), torch.randn(20, 12), torch.randn(12, 20)]
    tensors += [torch.randn(n) for n in (20, 20, 12)]
    numbers = (1e-5, 2e-5, 3e-5, 4e-5, 0.25)
    head = HeadWeights(*(torch.randn(32) for _ in range(8)))
    own = [torch.randn(32, 12) for _ in range(3)]
    state = model_token.StateWeights(
        hybrid_token.TokenWeights(own[2], *WEIGHTS, head, *MIDDLE.values(), torch.randn(12, 64)),
        hybrid_token.TokenOptions(HeadOptions(2, 16, letters="k"), "additive", 4, 1e-5),
        *own[:2],
    )
    layers = [model_token.LayerWeights(*tensors, numbers, x) for x in (None, state)]
    norm = model_token.FinalNorm(torch.randn(12), 5e-5)
    call = model_token.make(layers, norm, 16, 3)
    assert call is not None
    hidden, rotation = torch.randn(3, 1, 12), (torch.randn(3, 1, 16), torch.randn(3, 1, 16))
    keys, values = torch.randn(3, 2, 400, 16)[:, :, :300], torch.randn(3, 2, 400, 16)[:, :, :300]
    states = [torch.randn(3, 2, 16, 16), torch.randn(3, 2, 16, 16), *torch.randn(2, 3, 32)]
    caches = [model_token.LayerCache(keys, values), model_token.LayerCache(values, keys, *states)]
    seen = torch.ones(3, 310, dtype=torch.bool)
    out = call(hidden, rotation, seen, caches)
    model, given = (
        read(blocks[x], y) for x, y in zip(("TokenModel", "TokenCall"), handed[0], strict=True)
    )
    assert (model.layers, model.batch, model.threads) == (2, 3, torch.get_num_threads())
    assert (model.width, model.heads, model.groups, model.inner) == (12, 4, 2, 20)
    assert (model.norm, model.norm_eps) == (norm.weight.data_ptr(), 5e-5)
    found = (2 * blocks["TokenLayer"]).from_address(model.layer)
    for name, x in zip(model_token.LayerWeights._fields[:18], tensors, strict=True):
        assert [getattr(layer, name) for layer in found] == [x.data_ptr()] * 2, name
    for layer in found:
        names = ("input_eps", "q_eps", "k_eps", "feed_eps", "scaling")
        assert tuple(getattr(layer, x) for x in names) == numbers
    assert (found[0].hybrid, found[0].own_key, found[0].own_value) == (0, 0, 0)
    assert (found[1].own_key, found[1].own_value) == tuple(x.data_ptr() for x in own[:2])
    hybrid = blocks["HybridToken"].from_address(found[1].hybrid)
    assert hybrid.receptance.weight == own[2].data_ptr()
    check_cross_head(hybrid.cross, 3)
    # The result goes where the token's hidden states were copied to.
    assert given.hidden == out.data_ptr() != hidden.data_ptr()
    assert torch.equal(out, hidden)
    assert (given.cos, given.sin, given.rotations) == (*(x.data_ptr() for x in rotation), 16)
    assert (given.seen, given.columns, given.pieces) == (seen.data_ptr(), 310, 2)
    constants = dict(
        re.findall(
            r"#define (\w+) (\d+)", (repository / "wuneng/ops/native/model_token.h").read_text()
        )
    )
    assert int(constants["PIECE"]) == model_token._PIECE
    assert int(constants["MOST_TOKENS"]) == model_token.MOST_SEQUENCES


def test_a_models_cache(blocks: dict[str, Any]) -> None:
    keys, values = torch.randn(3, 2, 400, 16)[:, :, :300], torch.randn(3, 2, 400, 16)[:, :, :300]
    states = [torch.randn(1) for _ in range(4)]
    found = read(blocks["TokenCache"], model_token.LayerCache(keys, values, *states).block())
    assert (found.key, found.value) == (keys.data_ptr(), values.data_ptr())
    assert (found.tokens, found.sequence, found.head) == (300, 2 * 400 * 16, 400 * 16)
    names = ("state", "final_state", "carry", "last")
    assert [getattr(found, x) for x in names] == [x.data_ptr() for x in states]
