"""Logits that are not finite: a cheap check on the way, and which layer is to blame afterwards.

A NaN stops nothing by itself: it loses every comparison, so an argmax or a log-softmax over it
gives a token or a score like any other. Whoever turns logits into one checks them first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

__all__ = [
    "FiniteScores",
    "NotFinite",
    "all_finite",
    "first_layer_not_finite",
    "what_is_not_finite",
]


class NotFinite(Exception):
    """A model's logits are not finite; whoever knows what was asked makes an error of it.

    Attributes:
        row: of the batch.
        tokens: ``[T]`` what that row had read, pads included; None where the caller knows.
    """

    def __init__(self, row: int, tokens: Tensor | None = None) -> None:
        super().__init__(row)
        self.row = row
        self.tokens = tokens

    @property
    def read(self) -> Tensor:
        """The tokens, where whoever raised this knew them."""
        assert self.tokens is not None
        return self.tokens


def all_finite(logits: Tensor) -> bool:
    """Whether no logit is NaN or infinite: one pass that stores nothing."""
    # A NaN or an infinity survives every sum; a sum of finite logits overflows no float32.
    return bool(torch.isfinite(logits.sum(dtype=torch.float32))) or bool(
        torch.isfinite(logits).all()
    )


class FiniteScores(LogitsProcessor):  # type: ignore[misc]
    """For ``generate(logits_processor=[...])``: raises NotFinite before a token is chosen.

    A score of minus infinity alone is how transformers forbids a token, and passes; a row of
    nothing else does not, nor does one that the model itself gave, while :meth:`watching` it.
    """

    def __init__(self) -> None:
        self._finite: Tensor | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[FiniteScores]:
        """In the block the logits are looked at as ``model`` returns them."""

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = getattr(output, "logits", None)
            if isinstance(logits, Tensor):
                last = logits[:, -1]
                self._finite = None if all_finite(last) else torch.isfinite(last).all(dim=-1)

        handle = model.register_forward_hook(look)
        try:
            yield self
        finally:
            handle.remove()
            self._finite = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` ``[B, V]`` as they are."""
        finite = torch.isfinite(scores.amax(dim=-1))
        if self._finite is not None and self._finite.shape == finite.shape:
            finite &= self._finite.to(finite.device)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise NotFinite(row, input_ids[row])
        return scores


def what_is_not_finite(model: nn.Module, call: Callable[[], object]) -> str:
    """``the first layer that is not finite is model.layers.0.mlp (...)``, in words.

    ``call`` runs the model once more on what gave the logits.
    """
    name = first_layer_not_finite(model, call)
    if name is None:
        bad = _bad_parameters(model)
        return (
            f"its weights {', '.join(bad[:3])} are not finite" if bad else "no layer alone shows it"
        )
    module = model.get_submodule(name)
    own = [key for key, value in module.named_parameters(recurse=False) if not all_finite(value)]
    why = f" (its {' and '.join(own)} is not finite)" if own else ""
    return f"the first layer that is not finite is {name}{why}"


def first_layer_not_finite(model: nn.Module, call: Callable[[], object]) -> str | None:
    """Name of the module that is the first to return something that is not finite, or None."""
    found: list[str] = []
    with _watched(model, found), torch.no_grad():
        call()
    return found[0] if found else None


@contextmanager
def _watched(model: nn.Module, found: list[str]) -> Iterator[None]:
    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(not all_finite(one) for one in _tensors(output)):
                found.append(name)

        return hook

    # A module returns after those inside it: what is noted first is the innermost.
    handles = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.numel():
            yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, tuple | list):
        for value in output:
            yield from _tensors(value)


def _bad_parameters(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if not all_finite(value)]
