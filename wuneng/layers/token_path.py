"""A decoded token's short way through a block's state and middle heads: one call in C.

Taken on a CPU with a C compiler for one token of every sequence without gradients, where the block
has RWKV-7 heads of the plainest wiring (keys and values of attention or their own, a shift after
projection or none) and nothing watches its modules; otherwise the modules run one by one, with
equal results.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.plain_modules import modes_are_on
from wuneng.ops.backend import candidates
from wuneng.ops.native import hybrid_token
from wuneng.ops.plain import are_plain

_BLOCKS: WeakKeyDictionary[Any, hybrid_token.HybridToken] = WeakKeyDictionary()


def one_token(
    state_heads: Any,
    cross_head: Any,
    x: Tensor,
    heads: AttentionHeads | None,
    layout: SequenceLayout,
    slot: Any,
) -> tuple[Tensor, Tensor] | None:
    """A' ``[B, 1, H * N]`` and the branch ``[B, 1, D]``; None where the modules have to run.

    Args:
        state_heads, cross_head: an ``RWKV7`` and its layer's middle heads.
        x: the block's normalised input ``[B, 1, D]``.
        slot: this layer's cache; its state and carry are replaced.
    """
    if x.shape[1] != 1 or slot is None or heads is None or not _is_plain(x, heads, layout):
        return None
    if not isinstance(cross_head, MiddleHeads):
        return None  # wrapped
    if not state_heads.is_usual or not (state_heads.can_be_read() and cross_head.can_be_read()):
        return None
    if not hybrid_token.is_available(state_heads.head_dim):
        return None
    state, carry = slot.get("wkv"), slot.get("shift")
    if not are_plain(state, carry):
        return None
    if state is not None and not (state.is_cpu and state.is_contiguous()):
        return None
    if carry is not None and not (carry.dtype == torch.float32 and carry.is_contiguous()):
        return None
    call = _block(state_heads, cross_head, x.shape[0])
    if call is None:
        return None
    key, value = state_heads.key_value({"k": x, "v": x}, heads, layout)
    if not are_plain(key, value):
        return None
    changed, branch, state, carry = call(x, key, value, heads.output, state, carry)
    slot.put("wkv", state)
    if carry is not None:
        slot.put("shift", carry)
    return changed, branch


def _is_plain(x: Tensor, heads: AttentionHeads, layout: SequenceLayout) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or layout.cu_seqlens is not None:
        return False
    if torch.is_autocast_enabled("cpu") or "native" not in candidates("token", x.device):
        return False
    if modes_are_on():
        return False
    tensors = (x, heads.key, heads.value, heads.output)
    return are_plain(*tensors) and all(
        u.is_cpu and u.dtype == torch.float32 and u.is_contiguous() for u in tensors
    )


def _block(state_heads: Any, cross_head: Any, batch: int) -> hybrid_token.HybridToken | None:
    receptance, decay, rate, head = state_heads.token_weights()
    mixing = cross_head.token_weights()
    weights = hybrid_token.TokenWeights(receptance, decay, rate, head, *mixing)
    known = _BLOCKS.get(state_heads)
    if known is not None and known.fits(weights, batch):
        return known
    options = hybrid_token.TokenOptions(
        state_heads.options,
        cross_head.operator or "none",
        cross_head.attention_heads,
        cross_head.group_norm.eps if cross_head.mixes else 0.0,
    )
    made = hybrid_token.make(weights, options, batch)
    if made is not None:
        _BLOCKS[state_heads] = made
    return made
