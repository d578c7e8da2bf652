"""One token of a layer's state heads in one kernel.

One program per (batch, head): group norm and the removal key's norm need a whole head. The state is
read and written once, which is nearly all the traffic (2 x 4 N^2 bytes a head); what lies between
projections and readout never leaves the registers. Projections are read where they lie and weights
as they are, so a layer launches nothing else; in place nothing is allocated but R, so a captured
CUDA graph can replay the step.

Legend: B batch, S heads, N head size, n letters of the carry; an array's suffix K is along keys, V
along values.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces the kernel; its tensors have no useful static type.

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.ops.head_arguments import HeadCall, HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.wkv7.triton_launch import DTYPES, HEAD_SIZES, on_device


@triton.jit
def _shift(u, at, carry, carry_at, mu, channel, SLOT: tl.constexpr):
    """(u mixed with the token before, u as it came); the same without mu."""
    now = tl.load(u + at).to(tl.float32)
    mixed = now
    if mu is not None:
        before = tl.zeros_like(now)
        if SLOT >= 0 and carry is not None:
            before = tl.load(carry + carry_at).to(tl.float32)
        mixed = now + tl.load(mu + channel).to(tl.float32) * (before - now)
    return mixed, now


@triton.jit
def head_step_kernel(
    r, decay_logit, k, v, rate_logit, source, gate,  # [B, S, SIZE]; the last two may be None
    r_row, decay_row, k_row, v_row, rate_row, source_row, gate_row,  # elements between sequences
    mu_r, mu_k, mu_v, k_k, k_a, bonus, norm_weight, norm_bias,  # [S, SIZE]; None but k_k, k_a
    state,  # [B, S, SIZE, SIZE] (value, key) float32, or None for zero
    carry,  # [B, SLOTS, S, SIZE], or None for zero
    new_state,  # may be `state`
    new_carry,  # may be `carry`; None without letters
    out,  # [B, S, SIZE]
    heads, a_max, eps,
    SIZE: tl.constexpr,
    SLOTS: tl.constexpr,  # letters of the carry, and where r, k and v are in it or -1
    SLOT_R: tl.constexpr,
    SLOT_K: tl.constexpr,
    SLOT_V: tl.constexpr,
):  # fmt: skip
    """float32 throughout."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    batch = program // heads
    key_K = tl.arange(0, SIZE)
    value_V = tl.arange(0, SIZE)
    token = program * SIZE
    channel_K, channel_V = head * SIZE + key_K, head * SIZE + value_V
    slot = heads * SIZE
    row_K = batch * SLOTS * slot + channel_K  # of the carry
    row_V = batch * SLOTS * slot + channel_V
    at_VK = (token + value_V[:, None]) * SIZE + key_K[None, :]

    if state is not None:
        S_VK = tl.load(state + at_VK)
    r_K, r_now_K = _shift(
        r, batch * r_row + channel_K, carry, row_K + SLOT_R * slot, mu_r, channel_K, SLOT_R
    )
    k_K, k_now_K = _shift(
        k, batch * k_row + channel_K, carry, row_K + SLOT_K * slot, mu_k, channel_K, SLOT_K
    )
    v_V, v_now_V = _shift(
        v, batch * v_row + channel_V, carry, row_V + SLOT_V * slot, mu_v, channel_V, SLOT_V
    )
    source_K = k_K
    if source is not None:
        source_K = tl.load(source + batch * source_row + channel_K).to(tl.float32)
    kappa_K = source_K * tl.load(k_k + channel_K).to(tl.float32)
    rate_K = tl.sigmoid(tl.load(rate_logit + batch * rate_row + channel_K).to(tl.float32))
    k_K *= 1.0 + (rate_K - 1.0) * tl.load(k_a + channel_K).to(tl.float32)
    if state is not None:
        decay_K = tl.sigmoid(tl.load(decay_logit + batch * decay_row + channel_K).to(tl.float32))
        decay_K = tl.exp2(decay_K * -0.8750387749145276)  # -e^{-1/2} log2(e)
    # Several threads may load one element: in place, none may store before all have read. Loads
    # stay above, because none is moved across a barrier and each wait would follow the other.
    tl.debug_barrier()

    kappa_K /= tl.maximum(tl.sqrt(tl.sum(kappa_K * kappa_K, 0)), 1e-12)
    if state is None:
        S_VK = v_V[:, None] * k_K[None, :]
    else:
        removed_V = tl.sum(S_VK * kappa_K[None, :], 1)
        b_K = -a_max * rate_K * kappa_K
        S_VK = S_VK * decay_K[None, :] + removed_V[:, None] * b_K[None, :]
        S_VK += v_V[:, None] * k_K[None, :]
    tl.store(new_state + at_VK, S_VK)

    y_V = tl.sum(S_VK * r_K[None, :], 1)
    if norm_weight is not None:
        y_V -= tl.sum(y_V, 0) / SIZE
        y_V /= tl.sqrt(tl.sum(y_V * y_V, 0) / SIZE + eps)
        y_V *= tl.load(norm_weight + channel_V).to(tl.float32)
        y_V += tl.load(norm_bias + channel_V).to(tl.float32)
    if bonus is not None:
        y_V += tl.sum(r_K * k_K * tl.load(bonus + channel_K).to(tl.float32), 0) * v_V
    if gate is not None:
        y_V *= tl.load(gate + batch * gate_row + channel_V).to(tl.float32)
    tl.store(out + token + value_V, y_V.to(out.dtype.element_ty))

    if SLOT_R >= 0:
        tl.store(new_carry + row_K + SLOT_R * slot, r_now_K.to(new_carry.dtype.element_ty))
    if SLOT_K >= 0:
        tl.store(new_carry + row_K + SLOT_K * slot, k_now_K.to(new_carry.dtype.element_ty))
    if SLOT_V >= 0:
        tl.store(new_carry + row_V + SLOT_V * slot, v_now_V.to(new_carry.dtype.element_ty))


def step_warps(size: int) -> int:
    """Warps of a program: 32 elements of the state a thread at head size 64, 64 at 128."""
    return {16: 1, 32: 2, 64: 4, 128: 8}[size]


def slots(letters: str) -> dict[str, int]:
    """Where r, k and v are in a carry of ``letters``, as the kernel's constants; -1: not there."""
    places = {f"SLOT_{letter.upper()}": letters.find(letter) for letter in "rkv"}
    return {"SLOTS": len(letters), **places}


def takes(
    inputs: HeadInputs, weights: HeadWeights, options: HeadOptions, carry: Tensor | None
) -> bool:
    """Whether the kernel can run on these (the state is float32 where the inputs are taken)."""
    return options.size in HEAD_SIZES and all(
        x is None or x.dtype in DTYPES for x in (*inputs, *weights, carry)
    )


def state_head_step_triton(*given: *HeadCall, in_place: bool = False) -> HeadOutputs:
    """As :func:`wuneng.ops.state_head.step.state_head_step`, by the kernel, unchecked."""
    inputs, weights, options, state, carry = given
    heads, size, _, a_max, eps, letters = options
    lists, settings = (list(inputs), list(weights)), (heads, size, a_max, eps, letters)
    with torch.no_grad():
        if not in_place or (state is None and (carry is None or not letters)):
            out, new_state, new_carry = torch.ops.wuneng.state_head_step(
                *lists, state, carry, *settings
            )
            return HeadOutputs(out, new_state, new_carry if letters else None)
        batch = inputs.v.shape[0]
        if state is None:
            state = inputs.v.new_zeros(batch, heads, size, size, dtype=torch.float32)
        if carry is None and letters:
            kind = _carry_dtype(inputs, letters)
            carry = inputs.v.new_zeros(batch, len(letters) * heads * size, dtype=kind)
        out = torch.ops.wuneng.state_head_step_(*lists, state, carry, *settings)
    return HeadOutputs(out, state, carry if letters else None)


#: What both operators are given beside state and carry, in torch's language.
_GIVEN = "Tensor?[] inputs, Tensor?[] weights"
_SETTINGS = "SymInt heads, SymInt size, float a_max, float eps, str letters"


@torch.library.custom_op(
    "wuneng::state_head_step",
    mutates_args=(),
    schema=f"({_GIVEN}, Tensor? state, Tensor? carry, {_SETTINGS}) -> (Tensor, Tensor, Tensor)",
)
def _step(*given: Any) -> tuple[Tensor, Tensor, Tensor]:
    inputs, weights, state, carry, heads, size, a_max, eps, letters = given
    outputs = _outputs(inputs, heads, size, letters)
    before = (None if x is None else x.contiguous() for x in (state, carry))
    _launch(inputs, weights, (*before, *outputs[1:], outputs[0]), a_max, eps, letters)
    return outputs


@_step.register_fake
def _(inputs, weights, state, carry, heads, size, a_max, eps, letters):
    return _outputs(inputs, heads, size, letters)


@torch.library.custom_op(
    "wuneng::state_head_step_",
    mutates_args={"state", "carry"},
    schema=f"({_GIVEN}, Tensor(a2!) state, Tensor(a3!)? carry, {_SETTINGS}) -> Tensor",
)
def _step_(*given: Any) -> Tensor:
    inputs, weights, state, carry, heads, size, a_max, eps, letters = given
    out = _readout(inputs, heads, size)
    _launch(inputs, weights, (state, carry, state, carry, out), a_max, eps, letters)
    return out


@_step_.register_fake
def _(inputs, weights, state, carry, heads, size, a_max, eps, letters):
    return _readout(inputs, heads, size)


def _readout(inputs: Sequence[Tensor | None], heads: int, size: int) -> Tensor:
    v = inputs[3]
    assert v is not None
    return v.new_empty(v.shape[0], 1, heads, size)


def _outputs(
    inputs: Sequence[Tensor | None], heads: int, size: int, letters: str
) -> tuple[Tensor, Tensor, Tensor]:
    """R, state and carry, which has no elements without letters."""
    out = _readout(inputs, heads, size)
    state = out.new_empty(out.shape[0], heads, size, size, dtype=torch.float32)
    width = len(letters) * heads * size
    return out, state, out.new_empty(out.shape[0], width, dtype=_carry_dtype(inputs, letters))


def _carry_dtype(inputs: Sequence[Tensor | None], letters: str) -> torch.dtype:
    """What holds every letter, as ``torch.cat`` would choose."""
    r, _, k, v, *_ = inputs
    projections = {"r": r, "k": k, "v": v}
    kinds = [x.dtype for x in map(projections.get, letters) if x is not None]
    return reduce(torch.promote_types, kinds) if kinds else torch.float32


def _launch(
    inputs: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
    memory: tuple[Tensor | None, ...],
    a_max: float,
    eps: float,
    letters: str,
) -> None:
    """``memory`` is state, carry, their successors and R."""
    *states, out = memory
    assert out is not None
    batch, _, heads, size = out.shape
    if out.numel() == 0:
        return
    rows = [_rows(x, size) for x in inputs]
    if not letters:
        states[1] = states[3] = None
    with on_device(out):
        head_step_kernel[(batch * heads,)](
            *(x for x, _ in rows),
            *(stride for _, stride in rows),
            *(None if x is None else x.contiguous() for x in weights),
            *states,
            *(out, heads, a_max, eps),
            SIZE=size,
            **slots(letters),
            num_warps=step_warps(size),
        )


def _rows(x: Tensor | None, size: int) -> tuple[Tensor | None, int]:
    """A projection whose sequences have their channels side by side, and what lies between them."""
    if x is None:
        return None, 0
    side_by_side = x.stride(-1) == 1 and (x.dim() == 3 or x.stride(2) == size)
    x = x if side_by_side else x.contiguous()
    return x, x.stride(0)
