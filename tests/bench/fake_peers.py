"""Stand-ins for flash-linear-attention and mamba-ssm: their names, signatures and shapes in torch.

They are written from those projects' documentation and share no code with the references that the
benchmark compares them with. ``install`` puts them where ``import`` finds them.
"""

from __future__ import annotations

import inspect
import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.bench.fake_rwkv7 import FakeConfig, FakeRwkv7, wkv7

#: Arguments of every call, by the peer's own name.
Calls = dict[str, list[dict[str, Any]]]


def install(monkeypatch: pytest.MonkeyPatch, **planted: Any) -> Calls:
    """All of them. ``planted``: ``fla_factor`` and ``mamba_factor`` make outputs wrong."""
    calls: Calls = {}
    fla_factor, mamba_factor = planted.get("fla_factor", 1.0), planted.get("mamba_factor", 1.0)
    modules = {
        "fla": {"__version__": "9.9"},
        "fla.ops": {},
        "fla.ops.rwkv7": {
            "chunk_rwkv7": _recorded(calls, "chunk_rwkv7", planted.get("fla_chunk", _chunk)),
            "fused_recurrent_rwkv7": _recorded(calls, "fused_recurrent_rwkv7", wkv7),
        },
        "fla.ops.kda": {"chunk_kda": _recorded(calls, "chunk_kda", _kda(fla_factor))},
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
        if name in ("fla", "tilelang", "flash_attn", "mamba_ssm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def uninstall(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them, whatever is installed."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("fla", "tilelang", "flash_attn", "mamba_ssm"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])


def _recorded(calls: Calls, name: str, function: Any) -> Any:
    signature = inspect.signature(function)

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.setdefault(name, []).append(dict(signature.bind(*args, **kwargs).arguments))
        return function(*args, **kwargs)

    called.__signature__ = signature  # type: ignore[attr-defined]
    return called


def _chunk(
    *,
    safe_gate: bool = False,
    chunk_size: int | None = None,
    lower_bound: float | None = None,
    **options: Any,
) -> Any:
    """The recurrence; these only choose kernels."""
    return wkv7(**options)


def _kda(factor: float) -> Any:
    def chunk_kda(
        q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, scale: float,
        output_final_state: bool, safe_gate: bool,
    ) -> Any:  # fmt: skip
        """S [B, H, K, V]: forget by key, then correct what the key finds towards the value."""
        assert output_final_state
        assert safe_gate
        state = q.new_zeros(*q.shape[:1], *q.shape[2:], v.shape[-1])
        y = []
        for t in range(q.shape[1]):
            state = g[:, t, ..., None].exp() * state
            wrong = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
            state = state + torch.einsum("bhk,bhv->bhkv", beta[:, t, :, None] * k[:, t], wrong)
            y.append(factor * scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
        return torch.stack(y, 1), state

    return chunk_kda


def _scan(factor: float) -> Any:
    def mamba_chunk_scan_combined(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk_size: int, **options: Any
    ) -> Any:
        """In its quadratic form: y_t = sum over s <= t of C_t . B_s exp(sum A dt) dt_s x_s."""
        D, dt_bias = options.pop("D"), options.pop("dt_bias")
        assert options == {"dt_softplus": True, "return_final_states": True}
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
    state: Tensor, *inputs: Tensor, dt_bias: Tensor | None = None, dt_softplus: bool = False
) -> Tensor:
    """One token; the state is overwritten."""
    assert dt_bias is not None
    x, dt, A, B, C, D = inputs
    batch, heads, size, columns = state.shape
    assert x.shape == dt.shape == (batch, heads, size)
    assert A.shape == (heads, size, columns)
    assert D.shape == dt_bias.shape == (heads, size)
    assert B.shape == C.shape == (batch, B.shape[1], columns)
    # the kernel's condition for its short way: one step size and decay for a whole head
    assert (A.stride(-1), A.stride(-2), dt.stride(-1), dt_bias.stride(-1)) == (0, 0, 0, 0)
    assert dt_softplus
    step = F.softplus(dt + dt_bias)
    B, C = (p.repeat_interleave(heads // p.shape[1], 1) for p in (B, C))
    state.mul_((step[..., None] * A).exp()).add_(step[..., None] * x[..., None] * B[:, :, None])
    return (state * C[:, :, None]).sum(-1) + D * x
