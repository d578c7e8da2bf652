"""One token of WKV-7 in one kernel: what decoding runs.

One program per block of a head's value rows. The state is read and written once, which is all the
traffic that counts (2 x 4 SIZE^2 bytes a head); with `new_state` the state's own memory it is
advanced in place, so a captured CUDA graph can replay the step.
"""
# mypy: disable-error-code="no-untyped-def"
# Triton traces the kernel; its tensors have no useful static type.

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from wuneng.ops.wkv7.reference import Inputs
from wuneng.ops.wkv7.triton_launch import check_inputs, on_device

STEP_WARPS = 4


@triton.jit
def wkv7_step_kernel(
    r, w, k, v, a, b,  # [heads, SIZE] with `heads` counting batch x heads; any float type
    state,  # [heads, SIZE, SIZE] (value, key) float32, or None
    y,  # [heads, SIZE]
    new_state,  # float32, like state; may be the same memory
    SIZE: tl.constexpr,
    VALUES: tl.constexpr,
    HAS_STATE: tl.constexpr,
):  # fmt: skip
    """S <- S (diag(e^w) + a^T b) + v^T k and y = S r, float32 throughout."""
    BLOCKS: tl.constexpr = SIZE // VALUES
    head = (tl.program_id(0) // BLOCKS).to(tl.int64)
    key = head * SIZE + tl.arange(0, SIZE)
    value_V = tl.program_id(0) % BLOCKS * VALUES + tl.arange(0, VALUES)
    block_VK = (head * SIZE + value_V[:, None]) * SIZE + tl.arange(0, SIZE)[None, :]

    k_K = tl.load(k + key).to(tl.float32)
    v_V = tl.load(v + head * SIZE + value_V).to(tl.float32)
    new_VK = v_V[:, None] * k_K[None, :]
    if HAS_STATE:
        state_VK = tl.load(state + block_VK)
        decay_K = tl.exp2(tl.load(w + key).to(tl.float32) * 1.4426950408889634)
        a_K = tl.load(a + key).to(tl.float32)
        b_K = tl.load(b + key).to(tl.float32)
        removed_V = tl.sum(state_VK * a_K[None, :], 1)
        new_VK += state_VK * decay_K[None, :] + removed_V[:, None] * b_K[None, :]
    tl.store(new_state + block_VK, new_VK)
    y_V = tl.sum(new_VK * tl.load(r + key).to(tl.float32)[None, :], 1)
    tl.store(y + head * SIZE + value_V, y_V.to(y.dtype.element_ty))


def wkv7_triton_step(
    *inputs: *Inputs, state: Tensor | None, in_place: bool = False
) -> tuple[Tensor, Tensor]:
    """One token in one kernel; no gradients.

    Args:
        inputs: r, w, k, v, a, b ``[B, S, N]``, float32, bfloat16 or float16.
        state: ``[B, S, N_value, N_key]`` float32; None is zero.
        in_place: advance ``state``'s own memory (for a decoding loop that owns it).

    Returns:
        y ``[B, S, N]`` in v's dtype and the new state.

    Raises:
        ValueError: as :func:`wkv7_triton`, or ``in_place`` without a contiguous state.
    """
    check_inputs(inputs)
    if not in_place:
        return torch.ops.wuneng.wkv7_triton_step(*inputs, state)
    if state is None or not state.is_contiguous():
        raise ValueError("in_place needs a contiguous state")
    return torch.ops.wuneng.wkv7_triton_step_(*inputs, state), state


def step_values(size: int) -> int:
    """Value rows of one program: few enough that small batches reach every multiprocessor."""
    return min(size, 32)


def _launch_step(inputs: tuple[Tensor, ...], state: Tensor | None, y: Tensor, new: Tensor) -> None:
    batch, heads, size = y.shape
    if y.numel() == 0:
        return
    values = step_values(size)
    with on_device(y):
        wkv7_step_kernel[(batch * heads * (size // values),)](
            *(x.contiguous() for x in inputs),
            state,
            y,
            new,
            SIZE=size,
            VALUES=values,
            HAS_STATE=state is not None,
            num_warps=STEP_WARPS,
        )


@torch.library.custom_op("wuneng::wkv7_triton_step", mutates_args=())
def _step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    y, new = _step_outputs(v)
    _launch_step((r, w, k, v, a, b), None if state is None else state.contiguous(), y, new)
    return y, new


def _step_outputs(v: Tensor) -> tuple[Tensor, Tensor]:
    new = v.new_empty(*v.shape, v.shape[-1], dtype=torch.float32)
    return torch.empty_like(v, memory_format=torch.contiguous_format), new


@_step.register_fake
def _(r, w, k, v, a, b, state):  # type: ignore[no-untyped-def]
    return _step_outputs(v)


@torch.library.custom_op("wuneng::wkv7_triton_step_", mutates_args={"state"})
def _step_(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> Tensor:
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    _launch_step((r, w, k, v, a, b), state, y, state)
    return y


@_step_.register_fake
def _(r, w, k, v, a, b, state):  # type: ignore[no-untyped-def]
    return torch.empty_like(v, memory_format=torch.contiguous_format)
