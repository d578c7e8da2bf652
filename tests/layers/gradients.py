"""Gradients of a layer's state heads against differences, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wuneng.layers.layout import SequenceLayout

#: Fields of heads so small that differences are soon taken.
SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_state_heads": 2, "head_dim": 4}


def assert_gradients(heads: Any, names: Sequence[str]) -> None:
    """Of heads of the sizes ``SMALL``, in their input ``[1, 19, 8]`` and these parameters."""
    x = torch.randn(1, 19, 8, dtype=torch.float64, requires_grad=True)
    given = [dict(heads.named_parameters())[name] for name in names]

    def run(x: Tensor, *changed: Tensor) -> Tensor:
        swapped = dict(zip(names, changed, strict=True))
        layout = SequenceLayout.dense(1, 19)
        R, _ = torch.func.functional_call(heads, swapped, (x, None, None, layout))
        return R

    weights = [p.detach().clone().requires_grad_() for p in given]
    assert torch.autograd.gradcheck(run, (x, *weights), atol=1e-6, fast_mode=True)
