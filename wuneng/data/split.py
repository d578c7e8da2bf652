"""Which documents are held out for validation.

A document is held out when the hash of its text falls below the wanted fraction. So the choice does
not move when documents are added, renamed or reordered, equal documents are always on the same
side, and a larger fraction holds out the same documents and more. It does not depend on the run's
seed either: runs with different seeds are scored on the same text.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_half", "choose_validation", "document_digest", "falls_in_validation"]


def document_digest(document: str) -> int:
    """64-bit hash of a document's text."""
    content = hashlib.blake2b(document.encode("utf-8"), digest_size=8)
    return int.from_bytes(content.digest(), "little")


def falls_in_validation(digests: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """``[D]``: whether each document belongs to the validation split."""
    return digests < np.uint64(min(int(fraction * 2**64), 2**64 - 1))


def choose_validation(digests: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """As ``falls_in_validation``, but with at least one document on either side.

    In a small corpus the fraction may catch no document, or all: then the one with the smallest
    (largest) hash changes sides. Needs two different documents.
    """
    out = falls_in_validation(digests, fraction)
    if not out.any():
        out = digests == digests.min()
    if out.all():
        out = digests != digests.max()
    return out


def choose_half(
    digests: NDArray[np.uint64], held_out: NDArray[np.bool_], *, second: bool
) -> NDArray[np.bool_]:
    """``[D]``: one of two halves of the documents that are ``held_out``; equal documents are in the
    same one. Needs two different documents."""
    known, rank = np.unique(digests[held_out], return_inverse=True)
    if len(known) < 2:
        raise ValueError("one document cannot be halved")
    half = np.zeros_like(held_out)
    half[np.flatnonzero(held_out)] = rank % 2 == int(second)
    return half
