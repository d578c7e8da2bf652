"""Layers that torch.compile has compiled, for training (``training.compile``)."""

from __future__ import annotations

import copy
from functools import update_wrapper
from typing import Any

import torch
from torch import nn

from wuneng.distributed.wrapping import blocks
from wuneng.ops.backend import asked

__all__ = ["compile_blocks"]


def compile_blocks(model: nn.Module) -> None:
    """Compile every layer by itself, for training: equal layers are compiled once, not once for
    each, and what joins processes stays outside. A model without layers is compiled whole.

    Whole, the 24 layers of the 400m preset took more than three minutes to compile beside an H200.
    """
    import torch._dynamo.config as limits

    # Past torch's limit of eight a layer of yet another kind would run uncompiled, in silence.
    limits.recompile_limit = max(limits.recompile_limit, 64)
    for block in blocks(model) or [model]:
        block.forward = _CompiledInTraining(block)  # type: ignore[method-assign]


class _CompiledInTraining:
    """``block.forward``, compiled in training. Validation runs it as it is, since each of its
    lengths would be compiled, and so does the reference, which nothing compiled is to touch."""

    def __init__(self, block: nn.Module) -> None:
        self._block, self._plain = block, block.forward
        self._compiled = torch.compile(block.forward)
        update_wrapper(self, block.forward)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        compiles = self._block.training and asked(None) != "reference"
        return (self._compiled if compiles else self._plain)(*arguments, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied block has its own forward: what was compiled reads this block's weights."""
        return copy.deepcopy(self._plain, memo)
