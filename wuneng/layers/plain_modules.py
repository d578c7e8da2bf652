"""Which modules may be read past their own call, weights and all.

Other libraries change what a module does by hooking it, wrapping it, replacing its ``forward`` (its
own or its class's) or class, parametrising, pruning, offloading or quantising its weights, or watch
every operation by a mode. All of that is seen by calling the module, and by nothing else; so what
goes past the call asks here first.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from wuneng.ops.plain import are_plain

__all__ = ["as_written", "has_own_forward", "is_matrix", "is_plain", "modes_are_on"]

Kind = TypeVar("Kind", bound=type[nn.Module])

#: ``forward`` and ``__call__`` of every kind for which they were found to be its own.
_CALLED: dict[type, tuple[Any, Any]] = {}
_OF_MODULE = {name: vars(nn.Module)[name] for name in ("forward", "__call__")}


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is nothing but ``kind.forward`` with the weights it shows.

    A parametrised or sharded module is of a class of its own; a pruned one has a hook.
    """
    return (
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and "forward" not in module.__dict__
        and not torch_module._has_any_global_hook()
        and are_plain(*module._parameters.values())
        and (torch.compiler.is_compiling() or has_own_forward(kind))
    )


def is_matrix(module: Any) -> bool:
    """Whether calling ``module`` is nothing but a product with its weight: a plain ``nn.Linear``
    without the bias that somebody may have put in."""
    return is_plain(module, nn.Linear) and module._parameters["bias"] is None


def has_own_forward(kind: type[nn.Module]) -> bool:
    """Whether nobody has put another function in the place of the ``forward``, or the ``__call__``,
    that the class was written with."""
    called = (kind.forward, kind.__call__)
    known = _CALLED.get(kind)
    if known is None and _is_written_there(kind, "forward") and _is_written_there(kind, "__call__"):
        known = _CALLED[kind] = called
    return known is not None and called[0] is known[0] and called[1] is known[1]


def as_written(kind: Kind) -> Kind:
    """Decorates a class whose ``forward`` a base class wraps as it is made: so it is its own."""
    _CALLED[kind] = (kind.forward, kind.__call__)
    return kind


def _is_written_there(kind: type, name: str) -> bool:
    """Whether the method is of the class that has it: a wrapper may copy the name of what it wraps,
    and its code has a name of its own."""
    owner = next(base for base in kind.__mro__ if name in vars(base))
    method: Any = vars(owner)[name]
    if owner is nn.Module:
        return method is _OF_MODULE[name]
    return (
        isinstance(method, FunctionType)
        and method.__code__.co_qualname == f"{owner.__qualname__}.{name}"
        and method.__globals__.get("__name__") == owner.__module__
    )


def modes_are_on() -> bool:
    """Whether somebody watches every operation: a ``TorchFunctionMode`` (but for that of a default
    device) or a ``TorchDispatchMode``."""
    if torch._C._len_torch_dispatch_stack():
        return True
    if not torch._C._len_torch_function_stack():
        return False
    return any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
