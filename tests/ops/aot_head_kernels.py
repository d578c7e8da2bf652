"""How the kernels around the scan are compiled ahead of time: its inputs, readout, token shift, one
token.

``aot_resources`` runs it. Every optional part is present, which is what takes the most registers;
with ``_bare`` every one is absent, and with ``_half`` the weights are of half precision too.
"""

from __future__ import annotations

from typing import Any

import torch

from wuneng.ops.readout import triton_kernels as readout_triton
from wuneng.ops.readout.triton_kernels import readout_backward_kernel, readout_forward_kernel
from wuneng.ops.state_head.triton_step import head_step_kernel, slots, step_warps
from wuneng.ops.token_shift import triton_kernels as token_shift_triton
from wuneng.ops.token_shift.triton_kernels import (
    token_shift_backward_kernel,
    token_shift_forward_kernel,
)
from wuneng.ops.wkv7 import triton_projections
from wuneng.ops.wkv7.triton_launch import Launch
from wuneng.ops.wkv7.triton_projection_kernels import (
    projection_gradients_kernel,
    recurrence_inputs_kernel,
)

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
HEAD_KERNELS: dict[str, Any] = {
    "readout": readout_forward_kernel,
    "readout_backward": readout_backward_kernel,
    "token_shift": token_shift_forward_kernel,
    "token_shift_backward": token_shift_backward_kernel,
    "head_step": head_step_kernel,
    "recurrence_inputs": recurrence_inputs_kernel,
    "projection_gradients": projection_gradients_kernel,
    "readout_bare": readout_forward_kernel,
    "readout_backward_bare": readout_backward_kernel,
    "head_step_half": head_step_kernel,
    "head_step_bare": head_step_kernel,
}
OPTIONAL = ("norm_weight", "norm_bias", "bonus", "gate", "source", "state", "carry", "new_carry")
OPTIONAL += ("mu_r", "mu_k", "mu_v")

# Weights stay float32 under autocast; partial sums and the state always are.
_WEIGHTS = ("norm_weight", "norm_bias", "bonus", "mu", "mu_r", "mu_k", "mu_v", "k_k", "k_a")
_FLOAT32 = ("state", "new_state", "d_weight", "d_bias", "d_bonus", "d_mu", "w", "dw", "d_weights")
_TYPES = {"eps": "fp32", "a_max": "fp32"}
_TYPES |= dict.fromkeys(("rows", "heads", "tiles", "tokens", "channels", "token_tiles"), "i32")
_TYPES |= dict.fromkeys(("each", "batch_stride", "token_stride"), "i32")
_ROWS = ("r_row", "decay_row", "k_row", "v_row", "rate_row", "source_row", "gate_row")
_TYPES |= dict.fromkeys(_ROWS, "i32")


def head_arguments(build: Any) -> tuple[Any, dict[str, str | None], dict[str, Any], Launch]:
    """Kernel, types of its run-time arguments, constants, launch parameters of a ``Build``."""
    kernel, size = HEAD_KERNELS[build.kernel], build.size
    bare = build.kernel.endswith("_bare")
    constants: dict[str, Any] = {"SIZE": size, **slots("" if bare else "rkv")}
    constants |= dict.fromkeys(("HAS_NORM", "HAS_BONUS", "HAS_GATE"), not bare)
    rows, warps = 1, step_warps(size)
    if build.kernel.startswith("readout"):
        rows, warps = readout_triton.ROWS, readout_triton.WARPS
        constants["ROWS"] = rows
    elif build.kernel in ("recurrence_inputs", "projection_gradients"):
        rows, warps = triton_projections.ROWS, triton_projections.WARPS
        constants |= {"ROWS": rows, "SHARED": False, "HAS_KEY_READ": True, "A_MAX": 1.0}
    elif build.kernel.startswith("token_shift"):
        rows, warps = token_shift_triton.TOKENS, token_shift_triton.WARPS
        constants |= {"TOKENS": rows, "CHANNELS": token_shift_triton.CHANNELS}
    constants = {name: x for name, x in constants.items() if name in kernel.arg_names}
    types: dict[str, str | None] = dict.fromkeys(kernel.arg_names, POINTERS[build.dtype])
    wide = _FLOAT32 if build.kernel.endswith("_half") else (*_FLOAT32, *_WEIGHTS)
    types |= dict.fromkeys(set(wide) & set(types), "*fp32")
    types |= {name: kind for name, kind in _TYPES.items() if name in types}
    if bare:
        types |= dict.fromkeys(set(OPTIONAL) & set(types))
    return kernel, types, constants, Launch(rows, size, warps, 3)
