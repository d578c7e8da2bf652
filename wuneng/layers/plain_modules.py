"""Which modules may be read past their own call, weights and all.

Other libraries change what a module does by hooking it, wrapping it, replacing its ``forward`` (its
own or its class's) or class, parametrising, pruning, offloading or quantising its weights, or watch
every operation by a mode. All of that is seen by calling the module, and by nothing else; so what
goes past the call asks here first.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, is_
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from wuneng.ops.plain import are_plain

__all__ = [
    "as_written",
    "has_own_forward",
    "is_linear",
    "is_matrix",
    "is_plain",
    "is_weight",
    "methods_getter",
    "methods_of",
    "modes_are_on",
]

Kind = TypeVar("Kind", bound=type[nn.Module])

#: What :func:`methods_of` gave for every kind for which they were found to be its own.
_CALLED: dict[type, tuple[Any, ...]] = {}
_OF_MODULE = {name: vars(nn.Module)[name] for name in ("forward", "__call__")}


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling ``module`` is nothing but ``kind.forward`` with the weights it shows.

    A parametrised or sharded module is of a class of its own; a pruned one has a hook.
    """
    return (
        type(module) is kind
        and not module._buffers  # a weight that somebody froze is not where weights are looked for
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not module._backward_hooks
        and not module._backward_pre_hooks
        and not torch_module._has_any_global_hook()
        and are_plain(*module._parameters.values())
        and _is_as_written(module, kind)
    )


def _is_as_written(module: nn.Module, kind: type[nn.Module]) -> bool:
    if torch.compiler.is_compiling():  # which cannot trace the rest
        return "forward" not in module.__dict__
    return module.__dict__.keys().isdisjoint(_names(kind)) and has_own_forward(kind)


def is_linear(module: Any) -> bool:
    """Whether calling ``module`` is nothing but a product with its weight, and its bias if it has
    one."""
    return is_plain(module, nn.Linear) and module._parameters.keys() == {"weight", "bias"}


def is_matrix(module: Any) -> bool:
    """The same without the bias that somebody may have put in."""
    return is_linear(module) and module._parameters["bias"] is None


def is_weight(module: Any, kind: type[nn.Module]) -> bool:
    """Whether ``module`` is plain, and its ``weight`` its one parameter: a norm, a convolution."""
    return is_plain(module, kind) and module._parameters.keys() == {"weight"}


def has_own_forward(kind: type[nn.Module]) -> bool:
    """Whether nobody has put another function in the place of those of :func:`methods_of` that the
    class was written with."""
    called = methods_of(kind)
    known = _CALLED.get(kind)
    if known is None and all(_is_written_there(kind, name) for name in _names(kind)):
        known = _CALLED[kind] = called
    return known is not None and all(map(is_, called, known))


def methods_of(kind: type[nn.Module]) -> tuple[Any, ...]:
    """``forward`` and ``__call__``, and those of the class's ``computed_past_call``: methods that
    its ``forward`` is made of, whose arithmetic is done elsewhere where the call is gone past."""
    found: tuple[Any, ...] = methods_getter(kind)(kind)
    return found


def methods_getter(kind: type[nn.Module]) -> Callable[[type[nn.Module]], Any]:
    """What reads them off the class, for who asks at every token."""
    return attrgetter(*_names(kind))


def _names(kind: type[nn.Module]) -> tuple[str, ...]:
    own: tuple[str, ...] = getattr(kind, "computed_past_call", ())
    return ("forward", "__call__", *own)


def as_written(kind: Kind) -> Kind:
    """Decorates a class whose ``forward`` a base class wraps as it is made: so it is its own."""
    _CALLED[kind] = methods_of(kind)
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
