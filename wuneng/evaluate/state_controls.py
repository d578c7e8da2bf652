"""Controls at evaluation: what is lost when the state's readout is silenced or exchanged.

A model may have state heads and not use them. Two controls tell: `zero` sets what the state says
(y = r Sᵀ, before normalisation, bonus and fusion) to zero; `permute` gives every sequence the
readout of another one, half a batch away, at the same position. Zero removes the state's
contribution and its statistics; permute keeps the statistics and removes only the link between
the state and its own text. The states themselves evolve as trained; only their readout changes.
Nothing of a sequence's future reaches its past.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch import Tensor, nn

from wuneng.errors import InputError, ModelError, nearest

__all__ = ["StateControl", "controlled_state", "parse_state_control"]

StateControl = Literal["keep", "zero", "permute"]


def parse_state_control(name: str) -> StateControl:
    """The control of that name. InputError for another."""
    if name not in get_args(StateControl):
        known = get_args(StateControl)
        raise InputError(
            f"--state: expected {', '.join(known)}, got {name!r}.{nearest(name, known)}"
        )
    return name  # type: ignore[return-value]


@contextmanager
def controlled_state(model: nn.Module, control: StateControl) -> Iterator[None]:
    """Apply a control to every state head of a model while the block runs.

    Args:
        model: a WuNeng model. With "permute", every forward call needs two sequences or more.
        control: "keep" changes nothing.

    Raises:
        ModelError: the model has no state heads.
        ValueError: "permute" met a batch of one sequence.
    """
    if control == "keep":
        yield
        return
    from wuneng.layers.state.base import StateHeads

    layers: list[Any] = [module for module in model.modules() if isinstance(module, StateHeads)]
    if not layers:
        raise ModelError(
            f"--state {control}: the model has no state heads, so there is no state to {control}."
        )
    handles = []
    for layer in layers:
        if control == "zero":
            handles.append(layer.readout.register_forward_hook(_zero))
        else:
            handles += _permute(layer)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _zero(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
    return y * 0


def _permute(layer: Any) -> list[Any]:
    """Hooks that roll a layer's readout by half a batch.

    The readout comes in packed order when there are pads, so the layout of the layer's own call is
    needed to bring it into rows. Rows are sorted by length where they come from the harness: the
    other answers to one question are neighbours, and half a batch away is another question.
    """
    layouts: list[Any] = []

    def remember(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        layouts[:] = [named["layout"] if "layout" in named else arguments[3]]

    def roll(module: nn.Module, inputs: Any, y: Tensor) -> Tensor:
        layout = layouts[0]
        if layout.batch < 2:
            raise ValueError("permuting the state needs at least two sequences in a batch")
        rows = layout.unpack(y)  # [B, T, S, N]
        packed: Tensor = layout.pack(rows.roll(layout.batch // 2, dims=0))
        return packed

    return [
        layer.register_forward_pre_hook(remember, with_kwargs=True),
        layer.readout.register_forward_hook(roll),
    ]
