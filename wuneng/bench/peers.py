"""Other projects' implementations, measured in the same run where they can be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

from torch import Tensor

from wuneng.bench.engine import Missing

__all__ = ["PEERS", "fla_operators", "flash_attention", "peer_versions"]

#: What is named as missing where it is not installed: import name and distribution.
PEERS = {
    "flash-linear-attention": ("fla", "flash-linear-attention"),
    "flash-attn": ("flash_attn", "flash-attn"),
}


def peer_versions() -> dict[str, str]:
    """The installed version of each peer, or ``missing``."""
    found = {}
    for name, (module, distribution) in PEERS.items():
        try:
            importlib.import_module(module)
            found[name] = metadata.version(distribution)
        except Exception as error:  # a peer may fail in its own way without its device
            absent = isinstance(error, ModuleNotFoundError) and error.name == module
            found[name] = "missing" if absent else f"missing: {type(error).__name__}: {error}"
    return found


def fla_operators() -> dict[str, Callable[..., tuple[Tensor, ...]]]:
    """``fla-chunk`` and ``fla-recurrent``, called as (r, w, k, v, a, b) with w the log decay.

    Raises:
        Missing: flash-linear-attention is not installed or does not load here.
    """
    rwkv7 = _load("flash-linear-attention", "fla.ops.rwkv7")

    def chunk(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Any:
        return rwkv7.chunk_rwkv7(r=r, w=w, k=k, v=v, a=a, b=b, scale=1.0, output_final_state=True)

    def recurrent(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Any:
        run = rwkv7.fused_recurrent_rwkv7
        return run(r=r, w=w, k=k, v=v, a=a, b=b, scale=1.0, output_final_state=True)

    return {"fla-chunk": chunk, "fla-recurrent": recurrent}


def flash_attention() -> Callable[..., Tensor]:
    """FlashAttention's causal kernel on ``[B, H, T, N]``.

    Raises:
        Missing: flash-attn is not installed or does not load here.
    """
    kernel = _load("flash-attn", "flash_attn").flash_attn_func

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = kernel(*(x.transpose(1, 2) for x in (q, k, v)), causal=True)
        return out.transpose(1, 2)

    return attend


def _load(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise Missing(f"{name} is not installed") from None
        raise Missing(f"{name} does not load here: {type(error).__name__}: {error}") from None
