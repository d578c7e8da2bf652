"""What a decoded token's one call reads of a block (:mod:`wuneng.model.decoded_token`).

Only of a block whose every module does nothing but what its class says, with float32 weights of its
own: anything hooked, wrapped, replaced, parametrised, offloaded or quantised is seen here, at every
token, and the block's modules are called.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.activations import SiLUActivation

from wuneng.layers.attention import Attention
from wuneng.layers.feed_forward import SwiGLU
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.norms import RMSNorm
from wuneng.layers.plain_modules import is_linear, is_matrix, is_plain, is_weight
from wuneng.layers.short_conv import ShortConv
from wuneng.ops.native.hybrid_token import TokenOptions, TokenWeights
from wuneng.ops.native.token_arguments import (
    NO_CONVOLUTIONS,
    Convolutions,
    LayerWeights,
    StateWeights,
)

_SILU = (SiLUActivation, nn.SiLU)
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj")


def layer_weights(block: Any, config: Any) -> LayerWeights | None:
    """The weights of a block, or None where its modules have to be called.

    Args:
        block: a ``WuNengBlock`` that is plain itself.
        config: the model's configuration.
    """
    parts = block._modules
    norms = parts["input_layernorm"], parts["post_attention_layernorm"]
    attention = _attention(parts.get("self_attn"), config)
    feed_forward = _feed_forward(parts["mlp"])
    if attention is None or feed_forward is None or not all(is_weight(x, RMSNorm) for x in norms):
        return None
    weights, gate, conv, (q_eps, k_eps, scaling) = attention
    state = None
    if parts.get("state_heads") is not None:
        heads, beside_attention = parts["state_heads"], weights[0] is not None
        state = _state(heads, parts.get("cross_head"), config, beside_attention)
        if state is None:
            return None
    elif weights[0] is None:
        return None
    first, second = (norm._parameters["weight"] for norm in norms)
    numbers = (norms[0].eps, q_eps, k_eps, norms[1].eps, scaling)
    own = (first, *weights, second, *feed_forward, gate, conv)
    return LayerWeights._make((*own, numbers, state))


def _attention(
    attention: Any, config: Any
) -> tuple[list[Any], Any, Convolutions, tuple[float, float, float]] | None:
    """Weights q, k, v, o, their biases, the norms of queries and keys and the token shift of keys
    and values; the gate of the output; short convolutions; all None without attention. Then the
    norms' eps, and the scaling."""
    if attention is None:
        return [None] * 12, None, NO_CONVOLUTIONS, (0.0, 0.0, 0.0)
    if not is_plain(attention, Attention) or attention.config is not config:
        return None
    if attention.training and config.attention_dropout:
        return None
    parts, parameters = attention._modules, attention._parameters
    gate = parts.get("g_proj") if config.attention_output_gate else None
    conv = [parts.get(f"{x}_conv") for x in "qkv"] if config.attention_short_conv else []
    if not all(is_weight(x, ShortConv) for x in conv) or (
        config.attention_output_gate and not is_matrix(gate)
    ):
        return None
    linears = [parts[name] for name in _LINEARS]
    norms = [parts.get(name) if config.qk_norm else None for name in ("q_norm", "k_norm")]
    shifts = [None, None]
    if config.attention_token_shift:
        shifts = [parameters.get("shift_k"), parameters.get("shift_v")]
        if any(x is None for x in shifts):
            return None
    if not all(is_linear(x) for x in linears):
        return None
    if any(x is not None and not is_weight(x, RMSNorm) for x in norms):
        return None
    own = [x._parameters["weight"] for x in linears] + [x._parameters["bias"] for x in linears]
    own += [None if x is None else x._parameters["weight"] for x in norms] + shifts
    q_eps, k_eps = (0.0 if x is None else x.eps for x in norms)
    q, k, v = [x._parameters["weight"] for x in conv] or NO_CONVOLUTIONS
    gated = None if gate is None else gate._parameters["weight"]
    return own, gated, (q, k, v), (q_eps, k_eps, attention.scaling)


def _feed_forward(layer: Any) -> list[Any] | None:
    """Weights gate, up, down, and their biases."""
    if not is_plain(layer, SwiGLU):
        return None
    parts = layer._modules
    linears = [parts["gate_proj"], parts["up_proj"], parts["down_proj"]]
    if not any(is_plain(parts["act"], kind) for kind in _SILU):
        return None
    if not all(is_linear(x) for x in linears):
        return None
    return [x._parameters["weight"] for x in linears] + [x._parameters["bias"] for x in linears]


def _state(heads: Any, cross_head: Any, config: Any, beside_attention: bool) -> StateWeights | None:
    is_taken = vars(type(heads)).get("in_one_call", False) and heads.config is config
    if not is_taken or not isinstance(cross_head, MiddleHeads):
        return None
    if not heads.is_known or not (heads.can_be_read() and cross_head.can_be_read()):
        return None
    sources = (heads.key_source, heads.value_source)
    if not beside_attention and (sources != ("own", "own") or cross_head.mixes):
        return None
    own = [_own(heads, name, x) for name, x in zip(("k_proj", "v_proj"), sources, strict=True)]
    if any(x is not None and not is_matrix(x) for x in own):
        return None
    receptance, decay, rate, head = heads.token_weights()
    weights = TokenWeights(receptance, decay, rate, head, *cross_head.token_weights())
    kind, eps = cross_head.operator or "none", 0.0
    if cross_head.mixes:
        norm: Any = cross_head._modules["group_norm"]
        eps = norm.eps
    options = TokenOptions(heads.options, kind, cross_head.attention_heads, eps)
    own_key, own_value = (None if x is None else x._parameters["weight"] for x in own)
    wide = (*heads.wide_weights(), heads.convolution_weights(), heads.delta_weights())
    return StateWeights(weights, options, own_key, own_value, *wide)


def _own(heads: Any, name: str, source: str) -> Any:
    return heads._modules[name] if source == "own" else None
