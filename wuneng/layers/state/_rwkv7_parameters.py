"""The parameters of state heads: which ones a configuration has, and how they are looked up.

Tensor names and shapes are RWKV-LM's where it has them. Legend: S state heads, N head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from wuneng.layers.state.base import StateHeads
from wuneng.ops import HeadOptions, HeadWeights, LowRank


class HeadParameters(StateHeads):
    """What :class:`wuneng.layers.state.rwkv7.RWKV7` registers and reads by name."""

    options: HeadOptions
    _names: frozenset[str]

    def note_names(self) -> None:
        """Remember the parameters that there are, after the last one is registered."""
        self._names = frozenset(self._parameters)

    def _add_token_shift(self, size: int) -> None:
        self.add_token_shift()
        if self.config.token_shift == "pre":
            for letter in self.shifted_inputs():
                self.register_parameter(f"x_{letter}", nn.Parameter(torch.empty(size)))

    def shifted_inputs(self) -> str:
        """Which of RWKV-7's inputs r, w, k, v, a, g this layer projects itself."""
        config = self.config
        letters = "rwa"
        letters += "k" if self.key_source == "own" else ""
        letters += "v" if self.value_source == "own" else ""
        return letters + ("g" if config.state_output_gate else "")

    def _add_low_rank(self, size: int, width: int) -> None:
        """w, a (always), v (value residual, not in the first layer), g (gate): bias, down, up.

        The gate has a bias where its sigma follows.
        """
        config = self.config

        def add(name: str, rank: int, bias: bool = True) -> None:
            if bias:
                self.register_parameter(f"{name}0", nn.Parameter(torch.empty(width)))
            self.register_parameter(f"{name}1", nn.Parameter(torch.empty(size, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, width)))

        add("w", config.decay_rank)
        add("a", config.rate_rank)
        if config.state_value_residual and self.layer_idx > config.first_state_layer:
            add("v", config.value_rank)
        if config.state_output_gate:
            add("g", config.gate_rank, bias=config.state_gate_sigmoid == "output")

    def _weights(self) -> HeadWeights:
        """The operator's weights, without the group norm's."""
        r, k, v = (self.weight_of(f"shift_{letter}") for letter in "rkv")
        if not self.options.letters:
            r = k = v = None
        bonus = self.weight_of("r_k")
        return HeadWeights(r, k, v, self.weight_of("k_k"), self.weight_of("k_a"), bonus)

    def _with_norm(self, weights: HeadWeights) -> HeadWeights:
        norm = self._modules.get("g_norm")
        if norm is None:
            return weights
        own = norm._parameters
        return weights._replace(norm_weight=own["weight"], norm_bias=own["bias"])

    def weight_of(self, name: str) -> Any:
        """A parameter of this layer by its name, None where the configuration has it not.

        Looked up directly, because nn.Module's own lookup is felt when single tokens are decoded;
        through the module where a parametrisation or pruning has put something in its place.
        """
        own = self._parameters.get(name)
        if own is None and name in self._names:
            return getattr(self, name)
        return own

    def _low_rank_weights(self, letter: str) -> LowRank:
        down, up, bias = (self.weight_of(letter + part) for part in "120")
        return LowRank(down, up, bias)
