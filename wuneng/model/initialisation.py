"""Initial values: Llama's for attention and feed-forward, RWKV-7's for whatever carries state.

RWKV-7's values are RWKV-LM's (``train_temp``): per-channel ramps for token shift, decay and
in-context rate, a zero first matrix and a small orthogonal second one for every low-rank pair,
orthogonal receptance, key and value. With l the layer, L the layers, i the channel of C:
rho0 = l/(L-1), rho1 = 1 - l/L, lin = i/(C-1) - 0.5, zig = u|u| with u the position in the head.

Everything goes through ``transformers.initialization``, which leaves tensors that came from a
checkpoint alone: a converted model keeps its weights and only the grafted ones are drawn.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.layers.attention import Attention
from wuneng.layers.cross_head import CrossHead
from wuneng.layers.feed_forward import ChannelMix
from wuneng.layers.norms import HeadGroupNorm, HeadRMSNorm
from wuneng.layers.state_heads import StateHeads

SHIFT_POWER = {"r": 0.2, "g": 0.2, "w": 0.9, "a": 0.9, "k": 0.7, "v": 0.7}
NOW_LOGIT = 5.0  # softmax over (now, snapshots) starts with more than 0.96 on the present state


def initialise(module: nn.Module, config: Any) -> bool:
    """Draw the initial values of a WuNeng module; False if it is not one of ours."""
    layers = config.num_hidden_layers
    if isinstance(module, StateHeads):
        _state_heads(module, config, layers)
    elif isinstance(module, CrossHead):
        _cross_head(module, config)
    elif isinstance(module, Attention):
        if config.attention_token_shift:
            rho1 = 1 - module.layer_idx / layers
            for letter, shift in (("k", module.shift_k), ("v", module.shift_v)):
                init.copy_(shift, _shift(shift.numel(), SHIFT_POWER[letter] * rho1))
    elif isinstance(module, ChannelMix):
        init.copy_(module.x_k, _shift(module.x_k.numel(), 1.0))
        bound = 0.5 / math.sqrt(config.hidden_size)
        init.uniform_(module.key.weight, -bound, bound)
        init.zeros_(module.value.weight)
    elif isinstance(module, HeadRMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, HeadGroupNorm):
        init.zeros_(module.bias)
    else:
        return False
    return True


def _shift(channels: int, power: float) -> Tensor:
    """mu = 1 - (i/C)^p: early channels look back, late ones at the present."""
    return 1 - (torch.arange(channels, dtype=torch.float32) / channels) ** power


def _orthogonal(parameter: Tensor, gain: float) -> None:
    """Orthogonal in float32 whatever the parameter's dtype (QR has no half-precision kernel)."""
    if getattr(parameter, "_is_hf_initialized", False) or parameter.is_meta:
        return
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    init.copy_(parameter, nn.init.orthogonal_(drawn, gain))


def _state_heads(module: StateHeads, config: Any, layers: int) -> None:
    layer = module.layer_idx
    rho0 = layer / max(1, layers - 1)
    rho1 = 1 - layer / layers
    for name, parameter in module.named_parameters(recurse=False):
        prefix, _, letter = name.partition("_")
        if prefix in ("shift", "x"):
            init.copy_(parameter, _shift(parameter.numel(), SHIFT_POWER[letter] * rho1))
    channel = torch.arange(module.width, dtype=torch.float32)
    last = max(1, module.width - 1)
    lin = channel / last - 0.5
    half = max(1.0, (module.head_dim - 1) / 2)
    u = (channel % module.head_dim - half) / half
    zig = u * u.abs()
    init.copy_(module.w0, -6 + 6 * (channel / last) ** (1 + rho0**0.3) + 0.5 + 2.5 * zig)
    init.copy_(module.a0, -0.19 + 0.3 * zig + 0.4 * lin)
    if hasattr(module, "v0"):
        init.copy_(module.v0, 0.73 - 0.4 * lin)
    init.copy_(module.k_k, 0.71 - 0.1 * lin)
    init.constant_(module.k_a, 1.02)
    if hasattr(module, "r_k"):
        init.constant_(module.r_k, -0.04)
    _low_rank_and_projections(module)
    if hasattr(module, "g_norm"):
        init.constant_(module.g_norm.weight, ((1 + layer) / layers) ** 0.7)
    if hasattr(module, "snapshot_proj"):
        init.zeros_(module.snapshot_proj.weight)
        bias = torch.zeros(module.heads, 1 + config.snapshots)
        bias[:, 0] = NOW_LOGIT
        init.copy_(module.snapshot_proj.bias, bias.flatten())


def _low_rank_and_projections(module: StateHeads) -> None:
    for letter in "wavg":
        if hasattr(module, f"{letter}1"):
            up = getattr(module, f"{letter}2")
            init.zeros_(getattr(module, f"{letter}1"))
            _orthogonal(up, 0.1 * max(1.0, math.sqrt(up.shape[0] / up.shape[1])))
    gains = {"r_proj": 1.0, "k_proj": 0.1, "v_proj": 1.0, "kappa_proj": 0.1}
    for name, gain in gains.items():
        if hasattr(module, name):
            _orthogonal(getattr(module, name).weight, gain)


def _cross_head(module: CrossHead, config: Any) -> None:
    init.ones_(module.scale)
    if config.state_branch_init == "zero":
        init.zeros_(module.branch_proj.weight)
    else:
        init.normal_(module.branch_proj.weight, std=config.initializer_range)
    if module.kind == "none":
        return
    init.constant_(module.group_mix, 1 / module.group_size)
    if module.kind == "additive":
        # alpha starts at zero, so that grafted heads leave attention's own output alone
        init.zeros_(module.alpha)
        init.ones_(module.beta)
    elif module.kind == "gated":
        init.normal_(module.gate_weight, std=config.initializer_range)
        init.zeros_(module.gate_bias)
    else:
        init.normal_(module.mid_weight, std=(2 * module.head_dim) ** -0.5)
