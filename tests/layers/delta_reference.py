"""Gated DeltaNet and Kimi Delta Attention token by token, as their papers write them.

States are ``[N_key, N_value]`` here, S_t = (I - beta k k^T) diag(decay) S_{t-1} + beta k v^T, and
every token and head is a step of its own: nothing is shared with the layers but their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus


def layer_reference(layer: Any, x: Tensor, kind: str) -> Tensor:
    """R ``[B, T, S, N]`` of state heads with projections of their own, from ``x`` ``[B, T, D]``."""
    weights = dict(layer.named_parameters())
    heads, size = layer.heads, layer.head_dim
    out = torch.zeros(*x.shape[:2], heads, size, dtype=x.dtype)
    for row in range(x.shape[0]):
        projected = [x[row] @ weights[f"{letter}_proj.weight"].T for letter in "rkv"]
        q, k, v = (_mixed(u, letter, weights) for u, letter in zip(projected, "rkv", strict=True))
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            state = torch.zeros(size, size, dtype=x.dtype)
            for t in range(x.shape[1]):
                token = x[row, t]
                query, key, value = silu(q[t, part]), silu(k[t, part]), silu(v[t, part])
                query = query / (query @ query + 1e-6).sqrt() / size**0.5
                key = key / (key @ key + 1e-6).sqrt()
                beta = torch.sigmoid(token @ weights["b_proj.weight"][head])
                beta = layer.config.state_a_max * beta
                step = _step(token, weights, kind, head, part)
                decay = torch.exp(-weights["A_log"][head].exp() * step)
                state = decay[:, None] * state
                state = state + beta * torch.outer(key, value - key @ state)
                y = query @ state
                y = y / (y.square().mean() + layer.config.rms_norm_eps).sqrt()
                y = y * weights["o_norm.weight"][head]
                out[row, t, head] = y * _gate(token, weights, kind, part)
    return out


def _mixed(u: Tensor, letter: str, weights: dict[str, Tensor]) -> Tensor:
    """A convolution, then a token shift, of ``[T, C]``."""
    if f"{letter}_conv.weight" in weights:
        taps = weights[f"{letter}_conv.weight"]
        padded = torch.cat([torch.zeros(taps.shape[1] - 1, u.shape[1], dtype=u.dtype), u])
        u = torch.stack([(padded[t : t + taps.shape[1]] * taps.T).sum(0) for t in range(len(u))])
    before = torch.cat([torch.zeros_like(u[:1]), u[:-1]])
    if f"shift_{letter}" in weights:
        u = u + weights[f"shift_{letter}"] * (before - u)
    return u


def _step(token: Tensor, weights: dict[str, Tensor], kind: str, head: int, part: slice) -> Tensor:
    if kind == "gated_delta":
        logit = token @ weights["a_proj.weight"][head] + weights["dt_bias"][head]
        return softplus(logit).expand(part.stop - part.start)
    logit = weights["f_up.weight"][part] @ (weights["f_down.weight"] @ token)
    return softplus(logit + weights["dt_bias"][part])


def _gate(token: Tensor, weights: dict[str, Tensor], kind: str, part: slice) -> Tensor:
    if kind == "gated_delta":
        return silu(weights["g_proj.weight"][part] @ token)
    low = weights["g_down.weight"] @ token
    return torch.sigmoid(weights["g_up.weight"][part] @ low + weights["g_up.bias"][part])
