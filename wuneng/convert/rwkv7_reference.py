"""RWKV-7's forward pass written out token by token from RWKV-LM's tensor names.

Shares no code with the model it is compared with: this is what a converted RWKV-7 is verified
against. Equations: RWKV-7 as in RWKV-LM's ``rwkv_v7_numpy.py``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from wuneng.convert.rwkv7 import Rwkv7

__all__ = ["Rwkv7Reference"]


class Rwkv7Reference:
    """Holds the checkpoint's tensors in float32 (or float64) and runs one sequence at a time."""

    def __init__(self, checkpoint: Rwkv7, dtype: torch.dtype = torch.float32) -> None:
        self.config, self.dtype = checkpoint.config, dtype
        self.weights = {name: checkpoint.read(name).to(dtype) for name in checkpoint.stored}

    @torch.no_grad()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits ``[T, vocab]`` in ``dtype`` of one sequence of ids ``[T]``."""
        layers, width = self.config.num_hidden_layers, self.config.hidden_size
        heads, size = self.config.num_state_heads, self.config.state_head_dim
        mixed = [torch.zeros(width, dtype=self.dtype) for _ in range(layers)]
        fed = [torch.zeros(width, dtype=self.dtype) for _ in range(layers)]
        states = [
            torch.zeros(heads, size, size, dtype=self.dtype)  # type: ignore[arg-type]
            for _ in range(layers)
        ]
        rows = []
        for token in ids.tolist():
            x = self.weights["emb.weight"][token]
            if self.config.embedding_norm:
                x = self._norm(x, "blocks.0.ln0")
            first = x
            for layer in range(layers):
                block = f"blocks.{layer}"
                h = self._norm(x, f"{block}.ln1")
                out, states[layer], first = self._time_mix(
                    h, mixed[layer], states[layer], first, layer
                )
                x, mixed[layer] = x + out, h
                h = self._norm(x, f"{block}.ln2")
                x, fed[layer] = x + self._channel_mix(h, fed[layer], f"{block}.ffn"), h
            x = self._norm(x, "ln_out")
            head = self.weights.get("head.weight", self.weights["emb.weight"])
            rows.append(head @ x)
        return torch.stack(rows)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = (self.weights[f"{name}.{leaf}"].flatten() for leaf in ("weight", "bias"))
        return F.layer_norm(x, x.shape, weight, bias, self.config.rms_norm_eps)

    def _time_mix(
        self, x: Tensor, last: Tensor, state: Tensor, first: Tensor, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        name = f"blocks.{layer}.att"
        heads = state.shape[0]

        def w(leaf: str) -> Tensor:
            return self.weights[f"{name}.{leaf}"].squeeze()

        def shifted(letter: str) -> Tensor:
            return x + (last - x) * w(f"x_{letter}")

        def per_head(u: Tensor) -> Tensor:
            return u.view(heads, -1)

        r = self.weights[f"{name}.receptance.weight"] @ shifted("r")
        decay = w("w0") + torch.tanh(shifted("w") @ w("w1")) @ w("w2")
        decay = torch.exp(-math.exp(-0.5) * torch.sigmoid(decay))
        k = self.weights[f"{name}.key.weight"] @ shifted("k")
        v = self.weights[f"{name}.value.weight"] @ shifted("v")
        if layer == 0:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(w("v0") + (shifted("v") @ w("v1")) @ w("v2"))
        a = torch.sigmoid(w("a0") + (shifted("a") @ w("a1")) @ w("a2"))
        gate = torch.sigmoid(shifted("g") @ w("g1")) @ w("g2")
        kappa = F.normalize(per_head(k * w("k_k")), dim=-1, eps=1e-12)
        k = k * (1 + (a - 1) * w("k_a"))
        r_, k_, v_, a_, d_ = (per_head(u) for u in (r, k, v, a, decay))
        removed = torch.einsum("hvk,hk->hv", state, -kappa)
        state = state * d_[:, None, :]
        state = state + torch.einsum("hv,hk->hvk", removed, kappa * a_)
        state = state + torch.einsum("hv,hk->hvk", v_, k_)
        y = torch.einsum("hvk,hk->hv", state, r_).flatten()
        y = F.group_norm(
            y[None], heads, w("ln_x.weight"), w("ln_x.bias"), self.config.state_norm_eps
        )[0]
        bonus = (r_ * k_ * per_head(w("r_k"))).sum(-1, keepdim=True) * v_
        out = self.weights[f"{name}.output.weight"] @ ((y + bonus.flatten()) * gate)
        return out, state, first

    def _channel_mix(self, x: Tensor, last: Tensor, name: str) -> Tensor:
        k = x + (last - x) * self.weights[f"{name}.x_k"].squeeze()
        k = torch.relu(self.weights[f"{name}.key.weight"] @ k) ** 2
        return self.weights[f"{name}.value.weight"] @ k
