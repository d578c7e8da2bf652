"""A bound that holds on any processor: a few times what float32 loses in the plain case itself."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

#: How often the plain float32 result's own error may be lost, and units in the last place always.
TIMES, ALWAYS = 8.0, 8.0


def exact(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    """Logits [B, T, V] of the same weights in float64."""
    with torch.no_grad():
        wide: Tensor = copy.deepcopy(model).double()(ids, use_cache=False, **arguments).logits
    return wide


def assert_as_near(found: Tensor, plain: Tensor, truth: Tensor) -> None:
    """``found`` is about as near to float64's ``truth`` as the ``plain`` float32 call is."""
    assert truth.dtype == torch.float64
    assert found.isfinite().all()
    scale = truth.abs().max()
    lost, own = (float((x.double() - truth).abs().max() / scale) for x in (found, plain))
    allowed = max(TIMES * own, ALWAYS * torch.finfo(torch.float32).eps)
    assert lost <= allowed, f"off by {lost:.1e}, the plain call by {own:.1e}"
