"""Initial values: Llama's for attention and feed-forward, except for their output projections,
which start as ``output_init`` says; state and middle heads know their own.

Everything goes through ``transformers.initialization``, which leaves tensors that came from a
checkpoint alone: a converted model keeps its weights and only the grafted ones are drawn.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import initialization as init

from wuneng.layers.attention import Attention
from wuneng.layers.experts import is_of_mixture
from wuneng.layers.feed_forward import ChannelMix
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.norms import HeadGroupNorm, HeadRMSNorm, PlusOneRMSNorm
from wuneng.layers.output_projection import initialise_output, is_output
from wuneng.layers.short_conv import ShortConv
from wuneng.layers.state.base import StateHeads
from wuneng.layers.token_shift import SHIFT_POWER, shift_ramp


def initialise(module: nn.Module, config: Any) -> bool:
    """Draw the initial values of a WuNeng module; False if it is not one of ours."""
    layers = config.num_hidden_layers
    if isinstance(module, StateHeads | MiddleHeads):
        module.initialise(config)
    elif isinstance(module, Attention):
        if config.attention_token_shift:
            rho1 = 1 - module.layer_idx / layers
            for letter, shift in (("k", module.shift_k), ("v", module.shift_v)):
                init.copy_(shift, shift_ramp(shift.numel(), SHIFT_POWER[letter] * rho1))
    elif isinstance(module, nn.Linear) and is_output(module):
        initialise_output(module, config.output_init, config)
    elif isinstance(module, ShortConv):
        module.initialise()
    elif isinstance(module, ChannelMix):
        init.copy_(module.x_k, shift_ramp(module.x_k.numel(), 1.0))
        bound = 0.5 / math.sqrt(config.hidden_size)
        init.uniform_(module.key.weight, -bound, bound)
        init.zeros_(module.value.weight)
    elif is_of_mixture(module):
        for parameter in module.parameters():
            init.normal_(parameter, std=config.initializer_range)
    elif isinstance(module, PlusOneRMSNorm):
        init.zeros_(module.weight)
    elif isinstance(module, HeadRMSNorm):
        init.ones_(module.weight)
    elif isinstance(module, HeadGroupNorm):
        init.zeros_(module.bias)
    else:
        return False
    return True
