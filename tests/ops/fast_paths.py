"""Every compiled, fused or hand-written way to compute an operator: to be poisoned or spoiled.

A test that says "no fast path ran", or "a wrong one would be noticed", takes the list from here.
``test_reference_backend`` holds it against the source: what is missing here is found there.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

from torch import Tensor

#: How much a spoiled path's results are off.
FACTOR = 1.5


class PoisonedError(AssertionError):
    """A fast path ran that must not."""


@dataclass(frozen=True)
class FastPath:
    """One of them, and a small model's call that takes it on a CPU.

    Attributes:
        where: ``module:attribute`` of the function, below ``wuneng.ops``.
        variant: of ``tests.model.small``, with heads of 16 channels.
        action: ``prefill`` (no gradients), ``decode`` or ``gradient``.
        backend: asked for by ``using``; None for the default.
        written: the argument that it leaves its results in, for one that returns none.
        watched: whether a forward hook listens to what the state reads.
    """

    where: str
    variant: str
    action: str
    backend: str | None = None
    written: int | None = None
    watched: bool = False

    @property
    def compiled(self) -> bool:
        """Whether it is there only where C can be compiled."""
        return "native" in self.where.partition(":")[0].split(".")

    def __str__(self) -> str:
        return self.where


CPU_PATHS = [
    FastPath("state_head.native:_Call.forward", "default", "prefill"),
    FastPath("state_head.native:_backward", "default", "gradient"),
    FastPath("low_rank.native:low_rank", "pre-shift", "decode"),
    FastPath("low_rank.native:projections", "own-removal-key", "decode"),
    FastPath("cross_head.native:cross_head", "own-removal-key", "decode"),
    FastPath("native.hybrid_token:HybridToken.__call__", "rwkv-ffn", "decode"),
    FastPath("native.model_token:ModelToken.__call__", "default", "decode"),
    FastPath("wkv7.chunked:forward_pass", "snapshots", "prefill", written=2),
    FastPath("wkv7.chunked:backward_pass", "snapshots", "gradient", written=7),
    FastPath("wkv7.interface:step", "default", "decode", "chunked", watched=True),
    FastPath("wkv7.interface:step_with_snapshots", "snapshots", "decode"),
    FastPath("state_head.step:_torch_step", "default", "decode", "chunked"),
    FastPath(
        "state_head.recurrence_inputs:_RecurrenceInputs.forward", "default", "prefill", "chunked"
    ),
    FastPath("state_head.recurrence_inputs:_RecurrenceInputs.backward", "snapshots", "gradient"),
    FastPath("readout.by_hand:_without_gradients", "snapshots", "prefill"),
    FastPath("readout.by_hand:_StateReadout.forward", "default", "gradient", "chunked"),
    FastPath("readout.by_hand:_StateReadout.backward", "snapshots", "gradient"),
    FastPath("token_shift.by_hand:_TokenShift.forward", "rwkv-ffn", "prefill"),
    FastPath("token_shift.by_hand:_TokenShift.backward", "rwkv-ffn", "gradient"),
    FastPath("cross_head.by_hand:few_tokens", "default", "decode", "chunked"),
    FastPath("cross_head.by_hand:forward", "default", "gradient", "chunked"),
    FastPath("cross_head.by_hand:_CrossHead.forward", "default", "gradient", "chunked"),
    FastPath("cross_head.by_hand:_CrossHead.backward", "default", "gradient", "chunked"),
    FastPath("cross_head.native_pass:_CrossHead.forward", "default", "gradient"),
    FastPath("cross_head.native_pass:_backward", "default", "gradient"),
    FastPath("rms_norm.native:_RMSNorm.forward", "default", "gradient"),
    FastPath("rms_norm.native:_backward", "default", "gradient"),
    FastPath("linear_cross_entropy.by_hand:_InChunks.backward", "default", "gradient"),
]

#: The Triton kernels by their names in ``wuneng.ops.backend``; ``test_cuda_dispatch`` takes them.
TRITON_PATHS = {
    "scan": "wkv7.triton_autograd:wkv7_triton",
    "step": "wkv7.triton_autograd:wkv7_triton_step",
    "snapshots": "wkv7.triton_autograd:read_snapshots",
    "projections": "wkv7.triton_from_projections:wkv7_from_projections_triton",
    "head_step": "state_head.triton_step:state_head_step_triton",
    "readout": "readout.triton_kernels:state_readout_triton",
    "token_shift": "token_shift.triton_kernels:token_shift_triton",
    "cross_head": "cross_head.triton_autograd:cross_head_triton",
}
#: Modules whose operators are called by one of those alone.
BEHIND_TRITON_PATHS = {"wkv7.triton_step", "wkv7.triton_snapshots"}
FLA_PATH = "wkv7.fla:_load"

#: Where C is loaded or built.
LOADERS = [
    f"{module}:library"
    for module in (
        *("state_head.native", "low_rank.native", "cross_head.native"),
        *("cross_head.native_pass", "rms_norm.native"),
        *("native.few_tokens", "native.hybrid_token", "native.model_token"),
    )
]


@contextmanager
def poisoned(*wheres: str) -> Iterator[None]:
    """Whoever takes one of these paths is stopped by :class:`PoisonedError`."""
    with ExitStack() as stack:
        for where in wheres:
            stack.enter_context(replaced(where, _raising(where)))
        yield


@contextmanager
def spoiled(path: FastPath) -> Iterator[None]:
    """The path's results are :data:`FACTOR` times what they should be."""
    owner, name = _owner(path.where)
    right = getattr(owner, name)

    def wrong(*arguments: Any, **named: Any) -> Any:
        out = right(*arguments, **named)
        if path.written is None:
            return _scaled(out)
        given = arguments[path.written]
        for x in [given] if isinstance(given, Tensor) else given:
            x.mul_(FACTOR)
        return out

    with replaced(path.where, wrong):
        yield


@contextmanager
def replaced(where: str, function: Any) -> Iterator[None]:
    """``function`` in the place of the one at ``where``."""
    owner, name = _owner(where)
    if isinstance(vars(owner).get(name), staticmethod):
        function = staticmethod(function)
    with mock.patch.object(owner, name, function):
        yield


def _owner(where: str) -> tuple[Any, str]:
    module, attribute = where.split(":")
    owner: Any = importlib.import_module(f"wuneng.ops.{module}")
    *classes, name = attribute.split(".")
    for part in classes:
        owner = getattr(owner, part)
    return owner, name


def _raising(where: str) -> Any:
    def stop(*_: Any, **__: Any) -> Any:
        raise PoisonedError(where)

    return stop


def _scaled(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x * FACTOR if x.is_floating_point() else x
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(_scaled(y) for y in x))
    if isinstance(x, list | tuple):
        return type(x)(_scaled(y) for y in x)
    return x
