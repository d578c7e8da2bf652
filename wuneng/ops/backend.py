"""Which implementation computes an operator: the one place that decides.

    reference   the formula as it stands, torch's operations under plain autograd: the oracle
    chunked     torch's operations, arranged and differentiated by hand (WKV-7 in chunks)
    native      C, on a CPU with a compiler
    triton      fused kernels, on CUDA
    fla         WKV-7 by flash-linear-attention's kernels, the rest as ``chunked``

The argument ``backend`` of an operator comes first, then the innermost :func:`using`, then the
environment variable ``WUNENG_BACKEND``; where none of them asks, the device's default is taken:
C on a CPU, and on CUDA those Triton kernels that a GPU has judged (:data:`JUDGED`). An operator
takes the fastest of its :func:`candidates` that takes its arguments, hence without a compiler
``native`` means ``chunked``, and always ends with its formula. What is asked for by name runs
whether or not a GPU has judged it. WKV-7 itself does not fall back from ``triton`` and ``fla``, nor
from ``native`` where C cannot be had: it says what is missing.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from wuneng.errors import BackendError, nearest

__all__ = [
    "BACKENDS",
    "JUDGED",
    "MissingCompilerError",
    "MissingPackageError",
    "asked",
    "candidates",
    "check_environment",
    "using",
]

#: By which implementations a backend that is asked for may be served, the fastest first.
_NAMED: dict[str, tuple[str, ...]] = {
    "reference": ("reference",),
    "chunked": ("chunked", "reference"),
    "native": ("native", "chunked", "reference"),
    "triton": ("triton", "chunked", "reference"),
    "fla": ("fla", "chunked", "reference"),
}
BACKENDS = tuple(_NAMED)
VARIABLE = "WUNENG_BACKEND"
#: Variables of earlier versions: refused, because what they asked for would not happen.
_REPLACED = {
    "WUNENG_CROSS_HEAD": "WUNENG_BACKEND=triton turns on all Triton kernels, "
    "WUNENG_BACKEND=reference all plain formulas",
    "WUNENG_NATIVE": "WUNENG_BACKEND=chunked computes without the C kernels",
}

#: Triton kernels that are taken on CUDA unasked: those that have passed ``pytest -m gpu`` on a GPU
#: (an H200, torch 2.11, Triton 3.6). "projections" is the scan from raw projections.
JUDGED: frozenset[str] = frozenset(
    {
        *("scan", "segments", "snapshots", "step", "projections"),
        *("head_step", "readout", "token_shift", "cross_head"),
    }
)

#: By hand only for a CPU's caches: elsewhere a compiler fuses the formula, or nothing is gained.
_BY_HAND_ON_CPU = frozenset({"cross_head"})
HAS_TRITON = importlib.util.find_spec("triton") is not None

_innermost: ContextVar[str | None] = ContextVar("wuneng_backend", default=None)
#: What torch.compile reads in its place, since it cannot look into a context variable: the backend
#: of the :func:`using` that was entered last in any thread. A compiled graph is guarded by it.
_traced: str | None = None
_entered: list[tuple[object, str]] = []
#: What the environment was like when the replaced variables were last looked for.
_seen: tuple[int, str | None] = (-1, None)


class MissingPackageError(ModuleNotFoundError, BackendError):
    """The package whose kernels were asked for is not installed, or does not load."""


class MissingCompilerError(RuntimeError, BackendError):
    """The C kernels were asked for and cannot be built here."""


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Compute every operator in the body by ``backend``, unless an argument says otherwise.

    Nestable; other threads and asyncio tasks are not affected. Gradients follow the forward pass,
    so ``backward()`` may be called outside; with gradient checkpointing, which computes forward
    again, call it inside.

    Raises:
        BackendError: (a ValueError) the name is unknown.
    """
    global _traced
    token, entry = _innermost.set(_known(backend, "using()")), (object(), backend)
    _entered.append(entry)
    _traced = backend
    try:
        yield
    finally:
        _innermost.reset(token)
        _entered.remove(entry)
        _traced = _entered[-1][1] if _entered else None


def asked(backend: str | None = None) -> str | None:
    """The backend that is asked for by name: ``backend``, :func:`using`, the environment; or None.

    Raises:
        BackendError: (a ValueError) an unknown name, or a variable that is no longer read.
    """
    if backend is not None:
        return _known(backend, "backend")
    innermost = _traced if torch.compiler.is_compiling() else _innermost.get()
    return _from_environment() if innermost is None else innermost


def candidates(kernel: str, device: torch.device, backend: str | None = None) -> tuple[str, ...]:
    """The backends by which an operator may be computed; ``reference`` is always among them.

    Args:
        kernel: which Triton kernel the operator has, one of those that :data:`JUDGED` tells.
        device: of the operator's tensors.
        backend: the operator's argument.

    Raises:
        BackendError: as :func:`asked`.
    """
    named = asked(backend)
    if named is not None:
        return _NAMED[named]
    if device.type == "cpu":
        return _NAMED["native"]
    by_hand = () if kernel in _BY_HAND_ON_CPU else ("chunked",)
    judged = ("triton",) if device.type == "cuda" and HAS_TRITON and kernel in JUDGED else ()
    return (*judged, *by_hand, "reference")


def check_environment() -> None:
    """Refuse a mistaken environment before any work is done.

    Raises:
        BackendError: as :func:`asked`.
    """
    _refuse_replaced()
    _from_environment()


def _from_environment() -> str | None:
    """What the environment asks for; an empty variable asks for nothing."""
    value = os.environ.get(VARIABLE)
    # Each look at a variable is felt at every decoded token of every layer.
    if (len(os.environ), value) != _seen and not torch.compiler.is_compiling():
        _refuse_replaced()
    return _known(value, VARIABLE) if value else None


def _refuse_replaced() -> None:
    global _seen
    for name, instead in _REPLACED.items():
        if os.environ.get(name):
            raise BackendError(
                f"{name} is no longer read: {VARIABLE} alone chooses. Unset {name}; {instead}."
            )
    _seen = (len(os.environ), os.environ.get(VARIABLE))


def _known(name: str, source: str) -> str:
    if name not in BACKENDS:
        expected = ", ".join(BACKENDS)
        raise BackendError(
            f"{source} must be one of {expected}, got {name!r}.{nearest(name, BACKENDS)}"
        )
    return name
