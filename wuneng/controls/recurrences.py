"""What runs in place of the recurrence while a control changes the state itself.

Each is called as :func:`wuneng.ops.wkv7` is and calls it (or what stands in for it already) with
inputs that it has changed, so that every kind of state heads, every backend, snapshots, padding,
packed documents and, but for ``Borrowed``, a cache go the usual way:

    frozen:K   at tokens t >= K: log decay 0, k = v = a = b = 0, so S_t = S_{t-1}
    reset:K    at tokens t = K, 2K, ...: log decay -inf, a = b = 0, so S_t = v_t^T k_t; a snapshot
               from before the last such token is not read (weight 0)
    donor      read vectors (and weights of snapshots) go to the donor's row, what is read comes
               back: the donor's state is read as it evolves
    layers     w, k, v, a, b are another layer's

Legend: B batch, T tokens, S state heads, N head size; packed as :class:`SequenceLayout` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wuneng.layers.context_layout import PieceLayout
from wuneng.layers.layout import SequenceLayout
from wuneng.ops import Recurrence, Snapshots

__all__ = ["Borrowed", "Donor", "Edited", "LayerCall", "Tape", "freeze", "reset"]

_ARGUMENTS = ("hidden", "attention", "first_value", "layout", "slot")
_SEEN = "control_position"


class LayerCall:
    """The call that a layer of state heads is in: its layout and its cache."""

    layout: SequenceLayout
    slot: Any = None
    _places: Tensor | None = None

    def remember(self, module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A forward pre-hook. ValueError where a sequence is cut in pieces over several ranks."""
        given = {**dict(zip(_ARGUMENTS, arguments, strict=False)), **named}
        if isinstance(given["layout"], PieceLayout):
            raise ValueError("context_parallel: a control of the state needs whole sequences")
        self.layout, self.slot, self._places = given["layout"], given.get("slot"), None

    def places(self, like: Tensor) -> Tensor:
        """Each packed token's place in its sequence, ``[B, T]`` or ``[1, total]``, from 0.

        Counts on from earlier calls with the same cache. ValueError where those were made without
        the control.
        """
        if self._places is None:  # a state that is read twice is asked for them twice
            self._places = self._counted(like.device)
        return self._places

    def _counted(self, device: torch.device) -> Tensor:
        layout = self.layout
        lengths = layout.lengths(device)
        seen = None if self.slot is None else self.slot.get(_SEEN)
        if seen is None:
            if self.slot is not None and self.slot.get("wkv") is not None:
                raise ValueError("the cache was begun without this control of the state")
            seen = torch.zeros_like(lengths)
        if self.slot is not None:
            self.slot.put(_SEEN, seen + lengths)
        if layout.cu_seqlens is None:
            return torch.arange(layout.length, device=device) + seen[:, None]
        begun = (seen - layout.cu_seqlens[:-1]).repeat_interleave(lengths)
        return (torch.arange(begun.numel(), device=device) + begun)[None]


Inputs = list[Tensor]


def freeze(
    inputs: Inputs, snapshots: Snapshots | None, places: Tensor, tokens: int
) -> tuple[Inputs, Snapshots | None]:
    """r, w, k, v, a, b with nothing forgotten or written from token ``tokens`` on."""
    late = (places >= tokens)[..., None, None]
    r, *rest = inputs
    return [r, *(x.masked_fill(late, 0) for x in rest)], snapshots


def reset(
    inputs: Inputs, snapshots: Snapshots | None, places: Tensor, tokens: int
) -> tuple[Inputs, Snapshots | None]:
    """r, w, k, v, a, b with everything forgotten before every ``tokens``-th token."""
    anew = ((places % tokens == 0) & (places > 0))[..., None, None]
    r, w, k, v, a, b = inputs
    w = w.masked_fill(anew, -torch.inf)
    if snapshots is not None:
        newest = torch.arange(snapshots.count, device=places.device)
        # tokens that a snapshot has absorbed, beside those before the last reset
        absorbed = (places[..., None] // snapshots.every - newest) * snapshots.every
        old = absorbed <= (places - places % tokens)[..., None]
        now = torch.zeros_like(old[..., :1])
        kept = torch.cat([now, old], dim=-1).unsqueeze(-2)
        snapshots = replace(snapshots, weights=snapshots.weights.masked_fill(kept, 0))
    return [r, w, k, v, a.masked_fill(anew, 0), b.masked_fill(anew, 0)], snapshots


@dataclass
class Edited:
    """A recurrence whose inputs are changed token by token: ``edit`` is one of the two above."""

    inner: Recurrence
    call: LayerCall
    edit: Any
    tokens: int

    def __call__(self, *inputs: Tensor, snapshots: Snapshots | None = None, **options: Any) -> Any:
        places = self.call.places(inputs[0])
        changed, snapshots = self.edit(list(inputs), snapshots, places, self.tokens)
        # What the caller promises of its decays does not hold for a decay of everything.
        options.pop("log_decay_bound", None)
        return self.inner(*changed, **_with(snapshots, options))


@dataclass
class Donor:
    """A recurrence that every sequence's read vectors find in the row half a batch before it."""

    inner: Recurrence
    call: LayerCall

    def __call__(
        self, r: Tensor, *rest: Tensor, snapshots: Snapshots | None = None, **options: Any
    ) -> Any:
        half = company(self.call.layout) // 2
        if snapshots is not None:
            weights = rolled(self.call.layout, snapshots.weights, -half)
            snapshots = replace(snapshots, weights=weights)
        asked = rolled(self.call.layout, r, -half)
        y, *memory = self.inner(asked, *rest, **_with(snapshots, options))
        return (rolled(self.call.layout, y, half), *memory)


def company(layout: SequenceLayout) -> int:
    """Rows of the batch. ValueError where there is only one."""
    if layout.batch < 2:
        raise ValueError("another sequence's state needs at least two sequences in a batch")
    return layout.batch


def rolled(layout: SequenceLayout, x: Tensor, rows: int) -> Tensor:
    """Packed ``x`` with every row's values in the row ``rows`` further on; zeros come from pads."""
    moved: Tensor = layout.pack(layout.unpack(x).roll(rows, dims=0))
    return moved


@dataclass
class Tape:
    """What each layer's recurrence was fed in an untouched run over the same tokens."""

    records: bool = False
    inputs: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)


@dataclass
class Borrowed:
    """A recurrence whose state is another layer's: fed what that layer's was, asked its own r."""

    inner: Recurrence
    tape: Tape
    layer: int
    lender: int

    def __call__(self, r: Tensor, *rest: Tensor, **options: Any) -> Any:
        if self.tape.records:
            self.tape.inputs[self.layer] = rest
            return self.inner(r, *rest, **options)
        return self.inner(r, *self.tape.inputs[self.lender], **options)


def _with(snapshots: Snapshots | None, options: dict[str, Any]) -> dict[str, Any]:
    return options if snapshots is None else {**options, "snapshots": snapshots}
