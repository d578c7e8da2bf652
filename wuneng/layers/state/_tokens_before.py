"""How read vector, key and value of state heads are mixed with the tokens before them.

By a token shift that follows projection, or by short convolutions, or by neither. Legend: S state
heads, N head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from wuneng.layers.layout import SequenceLayout
from wuneng.layers.plain_modules import is_weight
from wuneng.layers.short_conv import ShortConv

#: Of the paper's letters: read vector (receptance), key, value.
LETTERS = "rkv"


class TokensBefore(nn.Module):
    """The part of :class:`wuneng.layers.state.base.StateHeads` that needs nothing else of it."""

    config: Any
    #: S * N.
    width: int

    def add_token_shift(self) -> None:
        """Register the weights of a token shift that follows projection, if there is one."""
        for letter in self.shifted_letters:
            shift = nn.Parameter(torch.empty(self.width))
            self.register_parameter(f"shift_{letter}", shift)

    @property
    def shifted_letters(self) -> str:
        """Of r, k, v those that a token shift changes after projection, in a carry's order."""
        return self.config.token_shift_on if self.config.token_shift == "post" else ""

    def add_convolutions(self) -> None:
        """Register the short convolutions, if there are some."""
        if self.config.state_short_conv:
            for letter in LETTERS:
                setattr(self, f"{letter}_conv", ShortConv(self.width, self.config.state_short_conv))

    def shifted(
        self, r: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, slot: Any
    ) -> tuple[Tensor, ...]:
        """r, k, v after a token shift that follows projection; the cache keeps the last token."""
        projected = {"r": r, "k": k[..., : self.width], "v": v[..., : self.width]}
        letters = self.shifted_letters
        last = None if slot is None or not letters else slot.get("shift")
        carries: dict[str, Any] = dict.fromkeys(letters)
        if last is not None:
            carries = dict(zip(letters, last.split(self.width, dim=-1), strict=True))
        if slot is not None and letters:
            ends = [layout.last(projected[letter], carries[letter]) for letter in letters]
            slot.put("shift", torch.cat(ends, dim=-1))
        for letter in letters:
            mu = getattr(self, f"shift_{letter}")
            projected[letter] = layout.shift(projected[letter], mu, carries[letter])
        return tuple(projected.values())

    def convolved(
        self, r: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, slot: Any
    ) -> tuple[Tensor, ...]:
        """r, k, v ``[.., S * N]`` after their short convolutions, if the configuration has some."""
        if not self.config.state_short_conv:
            return r, k, v
        mixed = []
        for letter, u in zip(LETTERS, (r, k, v), strict=True):
            carry = None if slot is None else slot.get(f"conv_{letter}")
            y, last = self._modules[f"{letter}_conv"](u[..., : self.width], layout, carry)  # type: ignore[misc]
            if slot is not None:
                slot.put(f"conv_{letter}", last)
            mixed.append(y)
        return tuple(mixed)

    @property
    def has_plain_convolutions(self) -> bool:
        """Whether the short convolutions, if there are some, are nothing but their weights."""
        return all(is_weight(conv, ShortConv) for conv in self._convolutions())

    def convolution_weights(self) -> tuple[Any, Any, Any]:
        """``[S * N, taps]`` of r, k, v; None without short convolutions."""
        weights = [conv._parameters["weight"] for conv in self._convolutions()]
        r, k, v = weights or (None, None, None)
        return r, k, v

    def _convolutions(self) -> list[Any]:
        letters = LETTERS if self.config.state_short_conv else ""
        return [self._modules[f"{letter}_conv"] for letter in letters]
