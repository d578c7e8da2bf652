"""Each layer's new heads learn what is asked of them, from the silent model's own activations.

    loss = mean over layers of  |said - asked|^2 / |asked|^2,  for every scored position

``said`` is what the branch adds to the residual stream, ``asked`` what attention (or the whole
layer) adds there; both from the layer's input in the Transformer that the model was made of, so
layers do not wait for each other. Silent heads have a loss of 1.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from wuneng.data.batch import IGNORED
from wuneng.model.branch_way import branch_ways
from wuneng.model.head_loss import HeadLoss
from wuneng.recipe import AlignStage

__all__ = ["Aligner"]


class Aligner:
    """Watches the branches of a model until it is closed."""

    parts: ClassVar[tuple[str, ...]] = ()
    """Of the loss, beside itself."""

    def __init__(self, model: nn.Module, settings: AlignStage, layers: Collection[int]) -> None:
        """``layers``: those that learn; the others' branches are only computed."""
        self._model, self._layers = model, frozenset(layers)
        self._ways = branch_ways(model)
        self._errors: list[Tensor] = []
        # What autograd keeps of a layer is its branch alone, so nothing is computed twice for it.
        self._recomputing = [m for m in model.modules() if getattr(m, "gradient_checkpointing", 0)]
        for module in self._recomputing:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        for way in self._ways.values():
            way.watch, way.whole_layer = self._watch, settings.target == "hidden"

    def loss(self, input_ids: Tensor, documents: Tensor | None, labels: Tensor) -> HeadLoss:
        """What to ask the model for: the loss ``[1]``, summed over the scored of ``labels``."""
        self._errors.clear()
        scored = labels != IGNORED

        def loss(hidden: Tensor, head: nn.Module) -> Tensor:
            errors = [(error * scored).sum() for error in self._errors]
            self._errors.clear()
            return torch.stack(errors).mean()[None]

        return loss

    def close(self, *, done: bool) -> None:
        """Stop watching. Once ``done``, branches that do not stand in attention's place are
        silent again: what they learnt is in the heads, and their output starts from zero."""
        for way in self._ways.values():
            way.watch = None
        for module in self._recomputing:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        if not done:
            return
        for block in self._model.modules():
            projection: Any = getattr(getattr(block, "cross_head", None), "branch_proj", None)
            if projection is None or block.layer_idx not in self._layers:
                continue
            if not self._ways[int(block.layer_idx)].replaces:  # type: ignore[arg-type]
                nn.init.zeros_(projection.weight)

    def _watch(self, layer: int, said: Tensor, asked: Tensor) -> None:
        if layer not in self._layers:
            return
        asked = asked.float()
        size = asked.pow(2).sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        self._errors.append((said.float() - asked).pow(2).sum(-1) / size)
