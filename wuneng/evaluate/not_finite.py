"""The one message about logits that are NaN or infinite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wuneng.errors import NonFiniteError
from wuneng.model.finite import what_is_not_finite

__all__ = ["not_finite_error"]


def not_finite_error(
    model: Any, label: str, item: str, call: Callable[[], object]
) -> NonFiniteError:
    """Names the item, and the first layer that is not finite.

    Args:
        label: how results call the model.
        item: what was asked, as in ``arc_easy, item 3``.
        call: runs the model once more on that item.
    """
    why = what_is_not_finite(model, call)
    advice = (
        "float16 overflows beyond 65,504: try --dtype bf16 or fp32"
        if model.dtype == torch.float16
        else "its training diverged, or its weights are damaged"
    )
    return NonFiniteError(f"{item}: logits of {label} are NaN or infinite; {why} ({advice})")
