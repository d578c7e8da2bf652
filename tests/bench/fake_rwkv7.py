"""A stand-in for flash-linear-attention's RWKV-7 model: its names, signatures and shapes in torch.

Written from that project's documentation, as the operators of ``fake_peers`` are.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTHS = ("w_lora", "a_lora", "g_lora", "v_lora")


def wkv7(
    *,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    **inputs: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """r, w, k, v, a, b ``[B, T, H, K]``, state ``[B, H, K, V]``; the decay is exp(w)."""
    r, w, k, v, a, b = (inputs.pop(name) for name in "rwkvab")
    assert not inputs
    state = initial_state
    if state is None:
        state = v.new_zeros(*v.shape[:1], *v.shape[2:3], k.shape[-1], v.shape[-1])
    out = []
    for t in range(r.shape[1]):
        removed = torch.einsum("bhk,bhkv->bhv", a[:, t], state)
        state = state * w[:, t].exp()[..., None]
        state = state + b[:, t, :, :, None] * removed[:, :, None]
        state = state + k[:, t, :, :, None] * v[:, t, :, None]
        out.append(torch.einsum("bhk,bhkv->bhv", scale * r[:, t], state))
    return torch.stack(out, 1), state if output_final_state else None


class FakeConfig(SimpleNamespace):
    """fla's ``RWKV7Config``, as far as the benchmark uses it."""

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        num_hidden_layers: int,
        head_dim: int,
        decay_low_rank_dim: int,
        gate_low_rank_dim: int,
        a_low_rank_dim: int,
        v_low_rank_dim: int,
        max_position_embeddings: int,
        norm_eps: float,
        bos_token_id: int | None,
        eos_token_id: int | None,
        tie_word_embeddings: bool,
        fuse_cross_entropy: bool,
        use_l2warp: bool,
        vocab_size: int,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in ("self", "given")}
        super().__init__(**{k: v for k, v in given.items() if not k.startswith("__")})

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "hidden_act": "sqrelu", "norm_bias": True, "norm_first": True}


class FakeLowRank(nn.Module):
    """fla's ``LoRA``."""

    def __init__(self, width: int, rank: int, act: nn.Module, bias: bool = True) -> None:
        super().__init__()
        first, second = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=bias)
        nn.init.zeros_(first.weight)
        self.lora = nn.Sequential(first, act, second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lora(x)
        return out


class FakeTimeMix(nn.Module):
    """fla's ``RWKV7Attention``."""

    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        width, self.size, self.layer = c.hidden_size, c.head_dim, layer
        for letter in "rwkvag":
            setattr(self, f"x_{letter}", nn.Parameter(torch.rand(1, 1, width)))
            if letter in "rkv":
                setattr(self, f"{letter}_proj", nn.Linear(width, width, bias=False))
        self.o_proj = nn.Linear(width, width, bias=False)
        self.k_k, self.k_a = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.r_k = nn.Parameter(torch.randn(width // self.size, self.size))
        self.w_lora = FakeLowRank(width, c.decay_low_rank_dim, nn.Tanh())
        self.a_lora = FakeLowRank(width, c.a_low_rank_dim, nn.Identity())
        self.g_lora = FakeLowRank(width, c.gate_low_rank_dim, nn.Sigmoid(), bias=False)
        if layer:
            self.v_lora = FakeLowRank(width, c.v_low_rank_dim, nn.Identity())
        self.g_norm = nn.GroupNorm(width // self.size, width, eps=self.size * c.norm_eps)

    def forward(self, x: Tensor, held: dict[str, Tensor], first: Any) -> tuple[Tensor, Tensor]:
        before = torch.cat(
            [held.get("conv_state", x.new_zeros(x.shape[0], x.shape[2]))[:, None], x], 1
        )
        held["conv_state"] = x[:, -1]
        delta = before[:, :-1] - x
        mixed = {n: x + delta * getattr(self, f"x_{n}") for n in "rwkvag"}
        r, k, v = (getattr(self, f"{n}_proj")(mixed[n]) for n in "rkv")
        w = -math.exp(-0.5) * self.w_lora(mixed["w"]).sigmoid()
        first = v if first is None else first
        if self.layer:
            v = v + (first - v) * self.v_lora(mixed["v"]).sigmoid()
        a, g = self.a_lora(mixed["a"]).sigmoid(), self.g_lora(mixed["g"])
        kappa = k * self.k_k
        k = k * (1 + (a - 1) * self.k_a)
        r, w, k, v, a, kappa = (u.unflatten(-1, (-1, self.size)) for u in (r, w, k, v, a, kappa))
        kappa = F.normalize(kappa, dim=-1)
        inputs = {"r": r, "w": w, "k": k, "v": v, "a": -kappa, "b": kappa * a}
        y, held["recurrent_state"] = wkv7(
            **inputs, initial_state=held.get("recurrent_state"), output_final_state=True
        )
        y = self.g_norm(y.flatten(0, 1).flatten(1)).view_as(x)
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(-2)
        return self.o_proj(y * g), first


class FakeChannelMix(nn.Module):
    """fla's ``RWKV7FeedForward``."""

    def __init__(self, c: Any) -> None:
        super().__init__()
        self.x_k = nn.Parameter(torch.rand(c.hidden_size))
        self.key = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.value = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)
        nn.init.zeros_(self.value.weight)

    def forward(self, x: Tensor, held: dict[str, Tensor]) -> Tensor:
        before = torch.cat(
            [held.get("ffn_state", x.new_zeros(x.shape[0], x.shape[2]))[:, None], x], 1
        )
        held["ffn_state"] = x[:, -1]
        out: Tensor = self.value(self.key(x + (before[:, :-1] - x) * self.x_k).relu() ** 2)
        return out


class FakeBlock(nn.Module):
    def __init__(self, c: Any, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.pre_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.attn_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.attn = FakeTimeMix(c, layer)
        self.ffn_norm = nn.LayerNorm(c.hidden_size, c.norm_eps)
        self.ffn = FakeChannelMix(c)

    def forward(self, x: Tensor, held: dict[str, Tensor], first: Any) -> tuple[Tensor, Tensor]:
        x = self.pre_norm(x) if hasattr(self, "pre_norm") else x
        out, first = self.attn(self.attn_norm(x), held, first)
        x = x + out
        return x + self.ffn(self.ffn_norm(x), held), first


class FakeCache:
    """fla's cache: a dictionary of states in each layer, replaced entry by entry."""

    def __init__(self, layers: int) -> None:
        self.layers = [SimpleNamespace(state={}) for _ in range(layers)]

    def batch_repeat_interleave(self, repeats: int) -> None:
        for layer in self.layers:
            layer.state = {k: v.repeat_interleave(repeats, 0) for k, v in layer.state.items()}


class FakeRwkv7(nn.Module):
    """fla's ``RWKV7ForCausalLM``."""

    factor = 1.0

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.uniform_(self.model.embeddings.weight, -1e-4, 1e-4)
        blocks = (FakeBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.model.layers = nn.ModuleList(blocks)
        self.model.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def forward(
        self,
        input_ids: Tensor,
        past_key_values: FakeCache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
    ) -> Any:
        layers = self.model.layers
        cache = past_key_values or FakeCache(len(layers))
        x, first = self.model.embeddings(input_ids), None
        for block, held in zip(layers, cache.layers, strict=True):
            x, first = block(x, held.state, first)
        logits = self.factor * self.lm_head(self.model.norm(x[:, -logits_to_keep:]))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        kept = cache if use_cache else None
        return SimpleNamespace(loss=loss, logits=logits, past_key_values=kept)
