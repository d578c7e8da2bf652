"""Other projects' operators, measured in the same run where they can be imported.

What is not installed raises :class:`Missing`; what is installed and does not run here (its kernels
are Triton's or CUDA's) raises :class:`Unsupported`. Both say why, and the row tells it.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from importlib import metadata
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from wuneng.bench.engine import Missing, Unsupported
from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE

__all__ = [
    "FLA",
    "LLAMA_CPP",
    "MAMBA",
    "PEERS",
    "WIND",
    "fla_operators",
    "flash_attention",
    "kda_scan",
    "load_peer",
    "mamba_scan",
    "mamba_step",
    "peer_versions",
    "require_gpu",
]

FLA, FLASH, MAMBA = "flash-linear-attention", "flash-attn", "mamba-ssm"
WIND = "wind_rwkv"
LLAMA_CPP = "llama-cpp-python"
#: What is named as missing where it is not installed: the module to import, by distribution.
PEERS = {
    FLA: "fla",
    "tilelang": "tilelang",  # which flash-linear-attention takes where it is installed
    FLASH: "flash_attn",
    MAMBA: "mamba_ssm",
    WIND: "wind_rwkv",
    LLAMA_CPP: "llama_cpp",
}
#: What flash-linear-attention's own RWKV-7 layer passes.
FLA_CHUNK = 64
#: What mamba-ssm's own Mamba-2 layer passes unless told otherwise.
MAMBA_CHUNK = 256

Operator = Callable[..., Any]


def peer_versions() -> dict[str, str]:
    """The installed version of each peer, or ``missing`` and the reason."""
    found = {}
    for name, module in PEERS.items():
        try:
            imported = importlib.import_module(module)
        except Exception as error:  # a peer may fail in its own way without its device
            absent = isinstance(error, ModuleNotFoundError) and error.name == module
            found[name] = "missing" if absent else f"missing: {_sentence(error)}"
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a source tree on the path
            found[name] = str(getattr(imported, "__version__", "version unknown"))
    return found


def load_peer(name: str, module: str) -> Any:
    """A module of the distribution ``name``.

    Raises:
        Missing: it is not installed or does not load here.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise Missing(f"{name} is not installed") from None
        raise Missing(f"{name} does not load here: {_sentence(error)}") from None


def _sentence(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0][:200]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def require_gpu(name: str, device: torch.device) -> None:
    """Triton's interpreter counts as one: ``TRITON_INTERPRET=1`` asks for it.

    Raises:
        Unsupported: the device is no GPU.
    """
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise Unsupported(f"{name}'s kernels need a GPU, this run is on {device.type}")


def fla_operators(device: torch.device) -> dict[str, Operator]:
    """``fla-chunk`` and ``fla-recurrent``, called as (r, w, k, v, a, b) with w the log decay.

    They return (y, state), take ``initial_state``, and their states are ``[B, H, key, value]``.
    The first is told what the project's own RWKV-7 layer tells it: how strong a decay can be, from
    which it chooses longer chunks and faster products, and TileLang's kernels where that is
    installed and FLA_TILELANG is not 0.

    Raises:
        Missing: flash-linear-attention is not installed or does not load here.
        Unsupported: there is no GPU.
    """
    rwkv7 = load_peer(FLA, "fla.ops.rwkv7")
    require_gpu(FLA, device)

    def called(run: Operator, **told: Any) -> Operator:
        known = signature(run).parameters
        told = {name: value for name, value in told.items() if name in known}

        def operator(*inputs: Tensor, initial_state: Tensor | None = None) -> Any:
            options = {"scale": 1.0, "initial_state": initial_state, "output_final_state": True}
            return run(**dict(zip("rwkvab", inputs, strict=True)), **options, **told)

        return operator

    decays = {"safe_gate": True, "lower_bound": LOG_DECAY_SCALE, "chunk_size": FLA_CHUNK}
    return {
        "fla-chunk": called(rwkv7.chunk_rwkv7, **decays),
        "fla-recurrent": called(rwkv7.fused_recurrent_rwkv7),
    }


def kda_scan(device: torch.device) -> Operator:
    """Kimi Delta Attention's chunked scan, called as (q, k, v, g, beta): returns (y, state).

    q, k, v and the log decay g ``[B, T, H, N]``, between WKV-7's bounds; beta ``[B, T, H]``.

    Raises:
        Missing: flash-linear-attention is not installed or does not load here, or has none.
        Unsupported: there is no GPU.
    """
    module = load_peer(FLA, "fla.ops.kda")
    require_gpu(FLA, device)
    bounded = "safe_gate" in signature(module.chunk_kda).parameters

    def operator(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Any:
        options: dict[str, Any] = {"scale": 1.0, "output_final_state": True}
        if bounded:
            options["safe_gate"] = True
        return module.chunk_kda(q=q, k=k, v=v, g=g, beta=beta, **options)

    return operator


def flash_attention() -> Callable[..., Tensor]:
    """FlashAttention's causal kernel on ``[B, H, T, N]``.

    Raises:
        Missing: flash-attn is not installed or does not load here.
        Unsupported: when called, with numbers of another type than its two.
    """
    kernel = load_peer(FLASH, "flash_attn").flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.dtype not in (torch.float16, torch.bfloat16):
            raise Unsupported(f"{FLASH} computes in fp16 and bf16, this run is in {q.dtype}")
        out: Tensor = kernel(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
        return out.transpose(1, 2)

    return attend


def mamba_scan(device: torch.device) -> Operator:
    """Mamba-2's chunked scan, called as (x, dt, A, B, C, D, dt_bias): returns (y, state).

    x ``[B, T, H, N]``, dt ``[B, T, H]`` before its bias and softplus, A (negative), D and dt_bias
    ``[H]``, B and C ``[B, T, G, N]`` shared by groups of heads; state ``[B, H, N, N]``.

    Raises:
        Missing: mamba-ssm is not installed or does not load here.
        Unsupported: there is no GPU.
    """
    scan = load_peer(MAMBA, "mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
    require_gpu(MAMBA, device)

    def operator(
        x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, dt_bias: Tensor
    ) -> Any:
        options = {"dt_softplus": True, "return_final_states": True}
        return scan(x, dt, A, B, C, MAMBA_CHUNK, D=D, dt_bias=dt_bias, **options)

    return operator


def mamba_step(device: torch.device) -> Operator:
    """One token of it, called as (state, x, dt, A, B, C, D, dt_bias): returns y, changes state.

    Shapes are :func:`mamba_scan`'s without T. The kernel wants dt, A, D and dt_bias spread over
    the channels and takes its short way where their strides there are zero, as Mamba-2's are.

    Raises:
        Missing: mamba-ssm is not installed or does not load here.
        Unsupported: there is no GPU.
    """
    module = load_peer(MAMBA, "mamba_ssm.ops.triton.selective_state_update")
    update = module.selective_state_update
    require_gpu(MAMBA, device)

    def operator(state: Tensor, *inputs: Tensor) -> Any:
        x, dt, A, B, C, D, dt_bias = inputs
        wide_dt = dt[..., None].expand(*x.shape)
        wide_A = A[:, None, None].expand(*state.shape[1:])
        wide_D, wide_bias = (p[:, None].expand(*x.shape[1:]) for p in (D, dt_bias))
        return update(state, x, wide_dt, wide_A, B, C, wide_D, dt_bias=wide_bias, dt_softplus=True)

    return operator
