"""What accelerators can do at most, by their vendors' data sheets: for shares and floors, never for
what was measured."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CARDS", "Card", "card_named"]


@dataclass(frozen=True)
class Card:
    """One of them; a device's name has all the words of ``name``."""

    name: str
    flops: float
    """FLOP/s of dense matrix products in bf16 and fp16, as torchtitan's table has them."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: float
    """Bytes."""


#: The first that fits a name counts. A100: of 80 GB; MI250X: one of its two dies.
CARDS = (
    Card("A100", 312e12, 2.04e12, 80e9),
    Card("H100 NVL", 835e12, 3.9e12, 94e9),
    Card("H100 PCIe", 756e12, 2.0e12, 80e9),
    Card("H100", 989e12, 3.35e12, 80e9),
    Card("H200", 989e12, 4.8e12, 141e9),
    Card("B200", 2.25e15, 8.0e12, 180e9),
    Card("L40S", 362e12, 0.864e12, 48e9),
    Card("MI300X", 1300e12, 5.3e12, 192e9),
    Card("MI250X", 191.5e12, 1.6e12, 64e9),
)


def card_named(device: str) -> Card | None:
    """That of a device as torch names it; None where it is not known."""
    return next((c for c in CARDS if all(word in device for word in c.name.split())), None)
