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


#: The first that fits a name counts. Memory and bandwidth were compared on 26 November 2026 with
#: copies and reports of the sheets that are named, not with the vendors' own pages. What these give
#: with sparsity is halved.
CARDS = (
    # NVIDIA A100 data sheet: 2,039 GB/s is the SXM card of 80 GB; PCIe has 1,935, 40 GB have 1,555.
    Card("A100", 312e12, 2.039e12, 80e9),
    # NVIDIA H100 data sheet (SXM, NVL) and product brief PB-11133-001 (PCIe: over 2,000 GB/s).
    Card("H100 NVL", 835e12, 3.9e12, 94e9),
    Card("H100 PCIe", 756e12, 2.0e12, 80e9),
    Card("H100", 989e12, 3.35e12, 80e9),
    # NVIDIA H200 data sheet.
    Card("H200 NVL", 835e12, 4.8e12, 141e9),
    Card("H200", 989e12, 4.8e12, 141e9),
    # NVIDIA Blackwell data sheet: one GPU of GB200 NVL72 and one of HGX B200.
    Card("GB200", 2.5e15, 8.0e12, 186e9),
    Card("B200", 2.25e15, 7.7e12, 180e9),
    # NVIDIA L40S data sheet.
    Card("L40S", 362e12, 0.864e12, 48e9),
    # AMD Instinct MI300X data sheet.
    Card("MI300X", 1300e12, 5.3e12, 192e9),
    # AMD Instinct MI250X product page: 3.2 TB/s and 128 GB, of which one of its two dies has half.
    Card("MI250X", 191.5e12, 1.6e12, 64e9),
)


def card_named(device: str) -> Card | None:
    """That of a device as torch names it; None where it is not known."""
    return next((c for c in CARDS if all(word in device for word in c.name.split())), None)
