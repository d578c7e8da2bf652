"""A model's code imported in half the time, for commands that only run it.

``transformers.modeling_utils`` imports torch's compiler (for one context manager and two
decorators), scipy (for one function of object detection), before 5.24 also scikit-learn with pandas
(for one function of assisted decoding) and more; on the way to a first token that is half of the
wait. While :func:`light_imports` is active a stand-in takes their place. It has the
few names that transformers asks for at import, which load the real module when they are used; any
other name loads it at once. Afterwards the stand-ins are gone: who imports ``torch._dynamo`` then
gets it.

Collecting garbage among the hundred thousand objects of an import finds nothing and takes a fifth
of the time; it waits until the end.

    python -X importtime -m wuneng_cli generate MODEL --prompt x      shows what is imported
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, TracebackType
from typing import Any

__all__ = ["light_imports"]

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable")
#: Modules that transformers takes one function each of, and calls it seldom.
_ONE_FUNCTION = {"scipy.optimize": "linear_sum_assignment", "sklearn.metrics": "roc_curve"}


class _StandIn(ModuleType):
    """In the place of a package that is not loaded yet; an unknown name loads it."""

    def __init__(self, name: str, **known: Any) -> None:
        super().__init__(name)
        # With a spec, `importlib.util.find_spec` answers as for the package itself.
        self.__spec__ = ModuleSpec(name, None, is_package=True)
        self.__path__: list[str] = []
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)


class _Inside(MetaPathFinder, Loader):
    """Finds modules inside a package that a stand-in is for, by loading the package itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A module that :meth:`create_module` will have loaded."""
        stood_for = isinstance(sys.modules.get(name.rpartition(".")[0]), _StandIn)
        return ModuleSpec(name, self) if stood_for else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The real module, loaded with its package."""
        return _real(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Done already."""


class _TransformGetItemToIndex:
    """The context manager that masks built with ``vmap`` are made in."""

    def __enter__(self) -> Any:
        self._real = _real(_WRAPPED).TransformGetItemToIndex()
        return self._real.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Any:
        return self._real.__exit__(kind, error, trace)


def _function(module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(_real(module), name)(*arguments, **named)

    return call


def _for_the_compiler(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that tells the compiler about a function."""
    return _for_the_compiler if function is None else function


@contextmanager
def light_imports() -> Iterator[None]:
    """Imports in the body are quick; what they leave out is loaded when it is needed."""
    stand_ins = [
        _StandIn(_COMPILER, **dict.fromkeys(_DECORATORS, _for_the_compiler)),
        _StandIn(_WRAPPED, TransformGetItemToIndex=_TransformGetItemToIndex),
        *(_StandIn(m, **{name: _function(m, name)}) for m, name in _ONE_FUNCTION.items()),
    ]
    put = {s.__name__: s for s in stand_ins if s.__name__ not in sys.modules}
    sys.modules.update(put)
    finder = _Inside()
    sys.meta_path.insert(0, finder)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _remove(*put)
        if collecting:
            gc.enable()
        gc.freeze()  # modules stay to the end: no collection looks at them again


def _remove(*names: str) -> None:
    for name in names:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _real(name: str) -> ModuleType:
    """The module itself, in the place of its stand-in."""
    _remove(*((_COMPILER, _WRAPPED) if name.startswith(_COMPILER) else (name,)))
    return importlib.import_module(name)
