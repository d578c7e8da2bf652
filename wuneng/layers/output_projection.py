"""Projections into the residual stream (``o_proj``, ``down_proj``, the branch): how they start."""

from __future__ import annotations

import math
from typing import Any

from torch import nn
from transformers import initialization as init

_MARK = "writes_residual"


def make_output(inputs: int, size: int, *, bias: bool) -> nn.Linear:
    """An output projection: an ordinary linear layer, which :func:`is_output` knows again.

    Marked itself, because transformers gives initial values to modules that hold parameters, and
    the layers around it may hold none of their own.
    """
    made = nn.Linear(inputs, size, bias=bias)
    made.__dict__[_MARK] = True
    return made


def is_output(module: nn.Module) -> bool:
    """Whether it was made by :func:`make_output`."""
    return _MARK in module.__dict__


def initialise_output(projection: nn.Linear, how: str, config: Any) -> None:
    """Give the weights ``[D, inputs]`` their initial values, a bias zero.

    Args:
        how: ``zero``; ``normal``, with ``initializer_range``; ``small``, that divided by sqrt(2 L),
            so that all 2 L of a model's outputs together are as large as one (GPT-2's rule).
    """
    if how == "zero":
        init.zeros_(projection.weight)
    else:
        several = math.sqrt(2 * config.num_hidden_layers) if how == "small" else 1.0
        init.normal_(projection.weight, std=config.initializer_range / several)
    if projection.bias is not None:
        init.zeros_(projection.bias)
