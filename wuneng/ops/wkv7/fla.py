"""WKV-7 through flash-linear-attention's ``chunk_rwkv7``, on CUDA, where it is installed.

Its operator has our inputs' layout ``[B, T, S, N]``, signs and log decay; its states are
``[key, value]``, ours ``[value, key]``. It is called with its default arguments, whose inverse is
forward substitution. Its own layer passes ``safe_gate`` and chunks of 64, which select an inverse
by a series in half precision: gradients wrong by 60 % on runs of equal tokens (docs/kernels.md).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from wuneng.errors import BackendError, reason
from wuneng.ops.backend import MissingPackageError
from wuneng.ops.wkv7.reference import Inputs, compute_dtype, wkv7_reference
from wuneng.ops.wkv7.snapshots import Snapshots

_PACKAGE = "flash-linear-attention"
_NEEDED = ("r", "w", "k", "v", "a", "b", "scale", "initial_state", "output_final_state")


def wkv7_fla(
    *inputs: *Inputs,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    snapshots: Snapshots | None = None,
) -> tuple[Tensor, Tensor, None]:
    """The recurrence by their kernels; arguments as :func:`wuneng.ops.wkv7`, unchecked.

    Matrix operands are in v's dtype; the log decay is in float32, as are the states.

    Returns:
        y ``[B, T, S, N]`` in v's dtype, the final state ``[B or sequences, S, N, N]``, None.

    Raises:
        BackendError: (a ValueError) snapshots, float64, or tensors that are not on a GPU.
        MissingPackageError: (also a ModuleNotFoundError) the package is not installed, does not
            load, or is a release that reads its decay in another way.
    """
    if snapshots is not None:
        raise BackendError("backend 'fla' has no snapshots; use backend 'triton' or 'chunked'")
    r, w, k, v, a, b = inputs
    if compute_dtype(*inputs, initial_state) == torch.float64:
        raise BackendError(
            "backend 'fla' has no float64; use backend 'chunked' or 'reference', or other inputs"
        )
    # Triton's interpreter stands in for a GPU in tests.
    if v.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            f"backend 'fla' needs CUDA tensors, v is on {v.device}; use backend 'chunked'"
        )
    run = _load()
    if v.numel() == 0:  # their launch has no program for it
        y, state, _ = wkv7_reference(*inputs, initial_state=initial_state, cu_seqlens=cu_seqlens)
        return y, state, None
    options: dict[str, Any] = {}
    if cu_seqlens is not None:
        options["cu_seqlens"] = cu_seqlens.long()
    if initial_state is not None:
        options["initial_state"] = initial_state.transpose(-1, -2).contiguous()
    matrices = {name: x.to(v.dtype) for name, x in zip("rkvab", (r, k, v, a, b), strict=True)}
    with torch.autocast(v.device.type, enabled=False):
        y, state = run(**matrices, w=w.float(), scale=1.0, output_final_state=True, **options)
    return y.to(v.dtype), state.float().transpose(-1, -2), None


def _load() -> Callable[..., Any]:
    """Their operator, if it is the one that we know how to call."""
    try:
        run: Callable[..., Any] = import_module("fla.ops.rwkv7").chunk_rwkv7
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "fla":
            raise MissingPackageError(_does_not_load(error), name="fla") from error
        raise MissingPackageError(
            f"backend 'fla' needs the package {_PACKAGE}, which is not installed; "
            "install it or use backend 'chunked'",
            name="fla",
        ) from error
    except Exception as error:  # a package may fail in its own way where its device is not
        raise MissingPackageError(_does_not_load(error), name="fla") from error
    parameters = inspect.signature(run).parameters
    if not all(name in parameters for name in _NEEDED) or "log_w" in parameters:
        raise MissingPackageError(
            f"backend 'fla' needs a newer {_PACKAGE}: in this release chunk_rwkv7 reads its "
            f"decay in another way (arguments {', '.join(parameters)})",
            name="fla",
        )
    return run


def _does_not_load(error: BaseException) -> str:
    return f"backend 'fla' needs the package {_PACKAGE}, which does not load here: {reason(error)}"
