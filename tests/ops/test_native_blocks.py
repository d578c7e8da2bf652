"""What Python packs is what the C headers say: every field's place, type and meaning.

The structures are read from the headers; blocks are those that the operators hand to the kernels,
intercepted, with tensors' addresses and numbers that are all different.
"""

from __future__ import annotations

import ctypes
import re
import struct
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.ops.native_blocks import MIDDLE, WEIGHTS, X, check_cross_head, check_low_rank, read
from wuneng.ops.cross_head import native as cross_head
from wuneng.ops.cross_head import native_pass
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadWeights
from wuneng.ops.low_rank import native as low_rank
from wuneng.ops.native import delta_arguments, hybrid_token, token_arguments
from wuneng.ops.rms_norm import native as rms_norm
from wuneng.ops.state_head import native_arguments as arguments

LETTERS = ("r", "w", "k", "v", "a", "b", "gate")


def test_the_headers_are_read(blocks: dict[str, Any]) -> None:
    assert list(blocks) == [
        *("Rows", "Arguments", "Product", "LowRank", "CrossHead", "CrossHeadPass", "RmsNorm"),
        *("HybridToken", "TokenInputs", "ShortConv", "ConvCarry", "DeltaRule", "StateParts"),
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
        "RmsNorm": rms_norm.RMS_NORM,
        "TokenInputs": hybrid_token._INPUTS,
        "TokenLayer": token_arguments.LAYER,
        "TokenModel": token_arguments.MODEL,
        "TokenCache": token_arguments._CACHE,
        "TokenCall": token_arguments.CALL,
    }.items():
        assert _letters(blocks[name]) == _expanded(packed), name
    of_a_pass = _expanded(cross_head.CROSS_HEAD) + _expanded(native_pass.PASS)
    assert _letters(blocks["CrossHeadPass"]) == of_a_pass
    parts = _expanded(token_arguments.PARTS) + 2 * _expanded(low_rank.LOW_RANK)
    assert _letters(blocks["StateParts"]) == parts + _expanded(delta_arguments._DELTA)


def _letters(kind: Any) -> str:
    """``q`` or ``d`` for each field, those of structures inside too."""
    out = ""
    for _, field in kind._fields_:
        if isinstance(field, type) and issubclass(field, ctypes.Structure):
            out += _letters(field)
        elif hasattr(field, "_length_"):
            one = field._type_
            out += (_letters(one) if hasattr(one, "_fields_") else "q") * field._length_
        else:
            out += "d" if field is ctypes.c_double else "q"
    return out


def _expanded(packed: struct.Struct) -> str:
    assert packed.format.startswith("="), "without padding"
    return "".join(x * int(n or 1) for n, x in re.findall(r"(\d*)([a-z])", packed.format))


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


def test_projections(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    receptance = torch.randn(32, 12)
    decay, rate = WEIGHTS
    r, w, a = low_rank.projections(16, X, receptance, decay, rate)
    product, *pair = handed[0]
    found = read(blocks["Product"], product)
    assert (found.tokens, found.size, found.width) == (3, 12, 32)
    assert (found.x, found.weight, found.out) == tuple(x.data_ptr() for x in (X, receptance, r))
    kinds = (low_rank.TANH, low_rank.NOTHING)
    for block, weights, out, between in zip(pair, WEIGHTS, (w, a), kinds, strict=True):
        found = read(blocks["LowRank"], block)
        check_low_rank(found, weights, between)
        assert (found.x, found.out) == (X.data_ptr(), out.data_ptr())


def test_cross_head(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    A, R = torch.randn(3, 1, 4, 16), torch.randn(3, 1, 2, 16)
    changed, branch = cross_head.cross_head("additive", A, R, *MIDDLE.values(), eps=1e-5)
    found = read(blocks["CrossHead"], handed[0][0])
    check_cross_head(found, 3)
    assert (found.attention, found.readout) == (A.data_ptr(), R.data_ptr())
    assert (found.changed, found.branch) == (changed.data_ptr(), branch.data_ptr())


def test_cross_head_of_many_tokens(blocks: dict[str, Any], handed: list[tuple[bytes, ...]]) -> None:
    A, R = torch.randn(3, 50, 4, 16), torch.randn(3, 50, 2, 16)
    given = ("additive", 1e-5, [A, R, *MIDDLE.values()])
    changed, branch, _ = native_pass._forward(*given, keep=True)
    d_changed, d_branch = torch.randn_like(changed), torch.randn_like(branch)
    made = native_pass._backward(*given, None, d_changed, d_branch)
    forward, backward = (read(blocks["CrossHeadPass"], block) for (block,) in handed)
    for found in (forward, backward):
        check_cross_head(found.cross, 150)
        assert (found.cross.attention, found.cross.readout) == (A.data_ptr(), R.data_ptr())
        assert (found.threads, found.gate, found.turned) == (1, 0, 0)
    assert (forward.block, backward.block) == (48, 120)
    assert (forward.cross.changed, forward.cross.branch) == (changed.data_ptr(), branch.data_ptr())
    assert forward.d_branch == forward.parts == backward.cross.branch == 0
    names = ("attention", "readout", "scale", "mix", "norm", "alpha_or_matrix", "beta_or_bias")
    for name, x in zip(names, made, strict=True):
        assert x is not None
        assert getattr(backward, f"d_{name}") == x.data_ptr(), name
    assert (backward.d_changed, backward.d_branch) == (d_changed.data_ptr(), d_branch.data_ptr())
    gate = torch.randn_like(R)
    matrix = torch.randn(2, 32, 16)
    given = ("gated", 1e-5, [A, R, *list(MIDDLE.values())[:3], matrix, MIDDLE["beta_or_bias"]])
    _, _, kept = native_pass._forward(*given, keep=True)
    native_pass._backward(*given, gate, None, d_branch)
    forward, backward = (read(blocks["CrossHeadPass"], block) for (block,) in handed[2:])
    assert kept is not None
    assert (forward.gate, backward.gate) == (kept.data_ptr(), gate.data_ptr())
    assert forward.cross.changed == backward.d_changed == 0
    assert backward.turned not in (0, matrix.data_ptr())


def test_rms_norm(blocks: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[bytes] = []
    kernels = SimpleNamespace(rms_norm_backward=handed.append)
    monkeypatch.setattr(rms_norm, "_kernels", lambda: kernels)
    x, weight, inverse, d_out = (torch.randn(s) for s in ((3, 50, 12), 12, (3, 50, 1), (3, 50, 12)))
    d_x, d_weight = rms_norm._backward(x, weight, inverse, d_out)
    found = read(blocks["RmsNorm"], handed[0])
    assert (found.rows, found.size, found.threads, found.block) == (150, 12, 1, 16)
    tensors = {"x": x, "weight": weight, "inverse": inverse, "d_out": d_out}
    for name, u in {**tensors, "d_x": d_x, "d_weight": d_weight}.items():
        assert getattr(found, name) == u.data_ptr(), name


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
    check_low_rank(plan.decay, WEIGHTS[0], low_rank.TANH)
    check_low_rank(plan.rate, WEIGHTS[1], low_rank.NOTHING)
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
