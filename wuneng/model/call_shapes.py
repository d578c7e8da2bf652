"""Shapes of a call's mask and positions, compared with its tokens and its cache.

A mask or positions of another width would be cut, padded or broadcast further on, which changes
the answer without a word. Only shapes are compared: nothing is read back from a device.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_shapes", "check_tokens", "is_padding", "kept_positions", "mask_of_pairs"]


def check_shapes(rows: Tensor, seen: int, attention_mask: Any, position_ids: Any) -> None:
    """The mask is as wide as everything that is attended to, the positions as the tokens.

    Args:
        rows: ``[B, T, ...]``, the tokens of this call.
        seen: tokens in the cache.
        attention_mask: ``[B, seen + T]``, or pairs ``[B or 1, any, T, seen + T]``; masks that are
            no tensor belong to an attention implementation and pass.
        position_ids: ``[B or 1, T]``.

    Raises:
        ValueError: another shape, with the one expected.
    """
    batch, length = rows.shape[:2]
    if isinstance(attention_mask, Tensor):
        shape, width = list(attention_mask.shape), seen + length
        pairs = len(shape) == 4 and shape[0] in (1, batch) and shape[2:] == [length, width]
        if shape != [batch, width] and not pairs:
            beside = f": {seen} tokens of the cache and {length} given" if seen else ""
            raise ValueError(
                f"attention_mask: expected shape [{batch}, {width}]{beside}, got {shape}"
            )
    if position_ids is not None:
        check_tokens(position_ids, rows, "position_ids")


def check_tokens(ids: Any, rows: Tensor, name: str) -> None:
    """ValueError unless ``ids`` are integers ``[B or 1, T]``, as the tokens in ``rows`` are."""
    batch, length = rows.shape[:2]
    shape = list(getattr(ids, "shape", ()))
    if shape not in ([batch, length], [1, length]):
        raise ValueError(
            f"{name}: expected shape [{batch}, {length}] as the tokens have, got "
            f"{shape or type(ids).__name__}"
        )
    if ids.is_floating_point():
        raise ValueError(f"{name}: expected integers, got {ids.dtype}")


def kept_positions(logits_to_keep: int | Tensor) -> slice | Tensor:
    """The positions whose logits are asked for: a number of the last ones, 0 for all, or indices.

    Raises:
        ValueError: a negative number, which would leave out the first ones.
    """
    if not isinstance(logits_to_keep, int):
        return logits_to_keep
    if logits_to_keep < 0:
        raise ValueError(
            f"logits_to_keep: expected 0 for all positions or a number of last ones, "
            f"got {logits_to_keep}"
        )
    return slice(-logits_to_keep or None, None)


def is_padding(attention_mask: Any) -> bool:
    """Whether a mask is ``[batch, tokens]``, zero at pads."""
    return isinstance(attention_mask, Tensor) and attention_mask.dim() == 2


def mask_of_pairs(attention_mask: Any) -> str:
    """What is said of another mask where pads are expected."""
    shape = list(getattr(attention_mask, "shape", [])) or type(attention_mask).__name__
    return f"attention_mask: expected [batch, tokens] (zero at pads), got {shape}"
