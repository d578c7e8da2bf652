"""Stand-ins for flash-linear-attention and mamba-ssm: their names, signatures and shapes in torch.

They are written from those projects' documentation and share no code with the references that the
benchmark compares them with. ``install`` puts them where ``import`` finds them.
"""

from __future__ import annotations

import inspect
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Arguments of every call, by the peer's own name.
Calls = dict[str, list[dict[str, Any]]]
WIDTHS = ("w_lora", "a_lora", "g_lora", "v_lora")


def install(monkeypatch: pytest.MonkeyPatch, **planted: Any) -> Calls:
    """All of them. ``planted``: ``fla_factor`` and ``mamba_factor`` make outputs wrong."""
    calls: Calls = {}
    fla_factor, mamba_factor = planted.get("fla_factor", 1.0), planted.get("mamba_factor", 1.0)
    modules = {
        "fla": {"__version__": "9.9"},
        "fla.ops": {},
        "fla.ops.rwkv7": {
            name: _recorded(calls, name, _wkv7) for name in ("chunk_rwkv7", "fused_recurrent_rwkv7")
        },
        "fla.models": {},
        "fla.models.rwkv7": {
            "RWKV7Config": _recorded(calls, "RWKV7Config", FakeConfig),
            "RWKV7ForCausalLM": type("RWKV7ForCausalLM", (FakeRwkv7,), {"factor": fla_factor}),
        },
        "mamba_ssm": {"__version__": "9.8"},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.triton": {},
        "mamba_ssm.ops.triton.ssd_combined": {
            "mamba_chunk_scan_combined": _recorded(calls, "scan", _scan(mamba_factor))
        },
        "mamba_ssm.ops.triton.selective_state_update": {
            "selective_state_update": _recorded(calls, "step", _update)
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


class Absent:
    """Finds none of them."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in ("fla", "flash_attn", "mamba_ssm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them, whatever is installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("fla", "flash_attn", "mamba_ssm"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


def _recorded(calls: Calls, name: str, function: Any) -> Any:
    signature = inspect.signature(function)

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.setdefault(name, []).append(dict(signature.bind(*args, **kwargs).arguments))
        return function(*args, **kwargs)

    return called


def _wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    scale: float = 1.0,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """``[B, T, H, K]``, state ``[B, H, K, V]``; the decay is exp(w)."""
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


def _scan(factor: float) -> Any:
    def mamba_chunk_scan_combined(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        chunk_size: int,
        D: Tensor | None = None,
        z: Tensor | None = None,
        dt_bias: Tensor | None = None,
        dt_softplus: bool = False,
        return_final_states: bool = False,
    ) -> Any:
        """In its quadratic form: y_t = sum over s <= t of C_t . B_s exp(sum A dt) dt_s x_s."""
        assert D is not None
        assert dt_bias is not None
        assert (z, dt_softplus, return_final_states) == (None, True, True)
        step = F.softplus(dt + dt_bias)
        reach = (step * A).cumsum(1)
        tokens = torch.arange(x.shape[1])
        ages = reach[:, :, None] - reach[:, None]  # [B, t, s, H]
        seen = (tokens[:, None] >= tokens)[None, :, :, None]
        decay = ages.masked_fill(~seen, -math.inf).exp()
        spread = x.shape[2] // B.shape[2]
        B_, C_ = (p.repeat_interleave(spread, 2) for p in (B, C))
        weights = torch.einsum("bthn,bshn->btsh", C_, B_) * decay * step[:, None]
        y = torch.einsum("btsh,bshp->bthp", weights, x) + factor * D[:, None] * x
        last = (reach[:, -1:] - reach).exp() * step
        return y, torch.einsum("bsh,bshp,bshn->bhpn", last, x, B_)

    return mamba_chunk_scan_combined


def _update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
) -> Tensor:
    """One token; the state is overwritten."""
    assert dt_bias is not None
    batch, heads, size, columns = state.shape
    assert x.shape == dt.shape == (batch, heads, size)
    assert A.shape == (heads, size, columns)
    assert D.shape == dt_bias.shape == (heads, size)
    assert B.shape == C.shape == (batch, B.shape[1], columns)
    # the kernel's condition for its short way: one step size and decay for a whole head
    assert (A.stride(-1), A.stride(-2), dt.stride(-1), dt_bias.stride(-1)) == (0, 0, 0, 0)
    assert dt_softplus
    assert z is None
    step = F.softplus(dt + dt_bias)
    B, C = (p.repeat_interleave(heads // p.shape[1], 1) for p in (B, C))
    state.mul_((step[..., None] * A).exp()).add_(step[..., None] * x[..., None] * B[:, :, None])
    return (state * C[:, :, None]).sum(-1) + D * x


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
        y, held["recurrent_state"] = _wkv7(
            r, w, k, v, -kappa, kappa * a, 1.0, held.get("recurrent_state"), True
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
