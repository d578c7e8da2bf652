"""The delta rule with a decay, as Gated DeltaNet and Kimi Delta Attention have it.

    q = l2norm(silu(r)) / sqrt(N)      k = l2norm(silu(k))      v = silu(v)      beta = sigma(x W_b)
    S_t = S_{t-1} diag(decay_t) (I - beta_t k_t^T k_t) + beta_t v_t^T k_t        y_t = q_t S_t^T
    R   = rmsnorm_head(y) * gate

(Yang et al., arXiv 2412.06464; Kimi Team, arXiv 2510.26692.) S is ``[N_value, N_key]``. That is the
recurrence of :func:`wuneng.ops.wkv7` with a = -decay k, b = beta k and the key beta k: a state that
decays and is corrected by a step of rank one. ``state_a_max`` 2 doubles beta, which allows negative
eigenvalues. Decays have no lower bound.

Legend: B batch, T tokens, D model width, S state heads, N head size.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.layers.attention import AttentionHeads
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.state._delta_token import DeltaToken

NORM_EPS = 1e-6


class DeltaRule(DeltaToken):
    """A kind says how a token's decay and gate come about."""

    gated: ClassVar[bool] = True
    published: ClassVar = {"token_shift": "none", "state_short_conv": 4}
    fields = frozenset({"state_output_gate", "state_a_max"})

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.add_token_shift()
        self.b_proj = nn.Linear(config.hidden_size, self.heads, bias=False)
        self.add_decay_and_gate(config)
        if config.state_norm == "group":
            self.o_norm = HeadRMSNorm(self.heads, self.head_dim, config.rms_norm_eps)
        self.add_snapshots()
        self.note_wiring()

    def add_decay_and_gate(self, config: Any) -> None:
        """Register what they are made of; the gate only with ``state_output_gate``."""
        raise NotImplementedError

    def initialise(self, config: Any) -> None:
        """Initial values, those of linear layers as everywhere in the model."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init.normal_(module.weight, std=config.initializer_range)
                if module.bias is not None:
                    init.zeros_(module.bias)
        super().initialise(config)

    def log_decay(self, x: Tensor) -> Tensor:
        """The log decay of every token, ``[.., S, N]`` or ``[.., S, 1]`` float32, at most 0."""
        raise NotImplementedError

    def gate(self, x: Tensor) -> Tensor:
        """What multiplies the output, ``[.., S * N]``."""
        raise NotImplementedError

    def read(
        self, x: Tensor, attention: AttentionHeads | None, layout: SequenceLayout, slot: Any
    ) -> Tensor:
        """R of the packed input; arguments as :class:`StateHeads`."""
        k, v = self.key_value({"k": x, "v": x}, attention, layout)
        r, k, v = self.convolved(self.r_proj(x), k, v, layout, slot)
        r, k, v = (
            nn.functional.silu(u).unflatten(-1, (self.heads, self.head_dim))
            for u in self.shifted(r, k, v, layout, slot)
        )
        r, k = _unit(r) * self.head_dim**-0.5, _unit(k)
        beta = self.config.state_a_max * torch.sigmoid(self.b_proj(x)).unsqueeze(-1)
        decay = self.log_decay(x)
        w = decay.expand(*decay.shape[:-1], self.head_dim)
        written = beta * k
        y = self.recur((r, w, written, v, -(decay.exp().to(k.dtype) * k), written), x, layout, slot)
        if self.config.state_norm == "group":
            y = self.o_norm(y)
        if self.config.state_output_gate:
            y = y * self.gate(x).unflatten(-1, (self.heads, self.head_dim)).to(y.dtype)
        return y


def _unit(x: Tensor) -> Tensor:
    """L2-normalised over the head, in x's dtype."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + NORM_EPS)).to(x.dtype)


class DecayRate:
    """log decay = -A softplus(logit + dt_bias), as Mamba-2's: a rate per head, a time step."""

    @staticmethod
    def add(module: nn.Module, heads: int, steps: int) -> None:
        """``A_log`` ``[S]`` and ``dt_bias`` ``[steps]`` become parameters of ``module``."""
        module.A_log = nn.Parameter(torch.empty(heads))
        module.dt_bias = nn.Parameter(torch.empty(steps))

    @staticmethod
    def of(module: Any, logit: Tensor) -> Tensor:
        """The log decay ``[.., S, n]`` of logits ``[.., S, n]``, float32 (float64)."""
        wide = torch.promote_types(logit.dtype, torch.float32)
        step = logit.to(wide) + module.dt_bias.to(wide).view(logit.shape[-2:])
        return -module.A_log.to(wide).exp().unsqueeze(-1) * nn.functional.softplus(step)

    @staticmethod
    def initialise(module: Any) -> None:
        """A uniform in 1..16, time steps log-uniform in 0.001..0.1."""
        init.copy_(module.A_log, torch.empty(module.A_log.shape).uniform_(1, 16).log())
        drawn = torch.empty(module.dt_bias.shape).uniform_(math.log(1e-3), math.log(0.1)).exp()
        init.copy_(module.dt_bias, drawn + torch.log(-torch.expm1(-drawn)))
