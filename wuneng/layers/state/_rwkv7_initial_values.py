"""Initial values of RWKV-7's heads: RWKV-LM's (``train_temp``), or spread evenly.

``state_init: published`` is RWKV-LM's, made for tens of layers a thousand channels wide.
Per-channel ramps for token shift, decay and in-context rate, a zero first matrix and a small
orthogonal second one for every low-rank pair, orthogonal receptance, key and value. With l the
layer, L the layers, i the channel of C: rho0 = l/(L-1), rho1 = 1 - l/L, lin = i/(C-1) - 0.5,
zig = u|u| with u the position in the head.

``state_init: even`` changes what a few narrow layers learn slowly with: decay logits spread from
-5 to 1 over the channels whatever the layer (0.996 to 0.642 of the state is kept), rates of 1/2,
low-rank pairs whose first matrix is random and whose second is zero, a receptance uniform in
+-1/sqrt(D), and a group norm of weight 1, where RWKV-LM has ((1+l)/L)^0.7 to keep many layers' sum
small. The output gate sigma(x g1) g2 starts near 1, for g2 is 2 / rank and little beside it:
RWKV-LM's starts as small numbers of either sign, which multiply all that the heads have read.
The other gate, sigma(x g1 g2 + g0), starts at 1/2, with either.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.layers.token_shift import SHIFT_POWER, shift_ramp


def _orthogonal(parameter: Tensor, gain: float) -> None:
    """Orthogonal in float32 whatever the parameter's dtype (QR has no half-precision kernel)."""
    if getattr(parameter, "_is_hf_initialized", False) or parameter.is_meta:
        return
    drawn = torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
    init.copy_(parameter, nn.init.orthogonal_(drawn, gain))


def initialise(module: Any, config: Any) -> None:
    """Fill every parameter of an ``RWKV7`` layer but those of its snapshots."""
    layer, layers = module.layer_idx, config.num_hidden_layers
    rho0 = layer / max(1, layers - 1)
    rho1 = 1 - layer / layers
    even = config.state_init == "even"
    for name, parameter in module.named_parameters(recurse=False):
        prefix, _, letter = name.partition("_")
        if prefix == "x":
            init.copy_(parameter, shift_ramp(parameter.numel(), SHIFT_POWER[letter] * rho1))
    channel = torch.arange(module.width, dtype=torch.float32)
    last = max(1, module.width - 1)
    lin = channel / last - 0.5
    half = max(1.0, (module.head_dim - 1) / 2)
    u = (channel % module.head_dim - half) / half
    zig = u * u.abs()
    ramp = -6 + 6 * (channel / last) ** (1 + rho0**0.3) + 0.5 + 2.5 * zig
    init.copy_(module.w0, 6 * lin - 2 if even else ramp)
    init.copy_(module.a0, torch.zeros_like(lin) if even else -0.19 + 0.3 * zig + 0.4 * lin)
    if hasattr(module, "g0"):
        init.zeros_(module.g0)
    if hasattr(module, "v0"):
        init.copy_(module.v0, 0.73 - 0.4 * lin)
    init.copy_(module.k_k, 0.71 - 0.1 * lin)
    init.constant_(module.k_a, 1.02)
    if hasattr(module, "r_k"):
        init.constant_(module.r_k, -0.04)
    _low_rank_and_projections(module, even)
    if hasattr(module, "g_norm"):
        init.constant_(module.g_norm.weight, 1.0 if even else ((1 + layer) / layers) ** 0.7)


def _low_rank_and_projections(module: Any, even: bool) -> None:
    zeros = "wav" + ("g" if hasattr(module, "g0") else "")
    for letter in "wavg":
        if hasattr(module, f"{letter}1"):
            down, up = getattr(module, f"{letter}1"), getattr(module, f"{letter}2")
            if even:
                init.uniform_(down, -(down.shape[0] ** -0.5), down.shape[0] ** -0.5)
            else:
                init.zeros_(down)
            if even and letter in zeros:
                init.zeros_(up)
                continue
            _orthogonal(up, 0.1 * max(1.0, math.sqrt(up.shape[0] / up.shape[1])))
            if even:
                init.copy_(up, up + 2 / up.shape[0])
    gains = {"r_proj": 1.0, "k_proj": 0.1, "v_proj": 1.0, "kappa_proj": 0.1}
    for name, gain in gains.items():
        if hasattr(module, name):
            _orthogonal(getattr(module, name).weight, gain)
    if hasattr(module, "read_weight"):
        for head in module.read_weight:
            _orthogonal(head, 1.0)
    if even:
        bound = module.r_proj.in_features**-0.5
        init.uniform_(module.r_proj.weight, -bound, bound)
