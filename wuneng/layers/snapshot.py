"""Whether modules are still what they were when they were read past their own call.

:mod:`wuneng.layers.plain_modules` says which may be read. Asking that of every module of a model at
every decoded token would take longer than a layer's arithmetic, so what could change is remembered
and compared as a whole: classes, attributes, children, parameters and where these lie, hooks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from wuneng.layers.plain_modules import methods_getter, methods_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Snapshot:
    """Of modules that are plain now, everything below them included."""

    def __init__(self, roots: Iterable[nn.Module]) -> None:
        self.modules = [module for root in roots for module in root.modules()]
        self.kinds: list[Any] = [type(module) for module in self.modules]
        self.called = [
            (kind, methods_getter(kind), methods_of(kind)) for kind in dict.fromkeys(self.kinds)
        ]
        self.hooks = [getattr(module, name) for module in self.modules for name in _HOOKS]
        # An attribute's value is compared by identity first: nothing below is looked into twice.
        self.now = [module.__dict__ for module in self.modules]
        self.now += [m._modules for m in self.modules] + [m._parameters for m in self.modules]
        self.then = [dict(attributes) for attributes in self.now]
        owned = (x for module in self.modules for x in module._parameters.values())
        self.parameters = [x for x in owned if x is not None]
        self.places = self._places()

    def holds(self) -> bool:
        """Whether nothing has changed."""
        if any(self.hooks) or torch_module._has_any_global_hook():
            return False
        if any(read(kind) != methods for kind, read, methods in self.called):
            return False
        if list(map(type, self.modules)) != self.kinds:
            return False
        try:
            same = self.now == self.then
        except (RuntimeError, TypeError, ValueError):  # another tensor, compared by its values
            return False
        return same and self._places() == self.places

    def _places(self) -> tuple[list[int], list[bool], list[torch.dtype]]:
        """Where the parameters' numbers lie, in what order they are and of what kind."""
        of = self.parameters
        return (
            [*map(Tensor.data_ptr, of)],
            [*map(Tensor.is_contiguous, of)],
            [x.dtype for x in of],
        )
