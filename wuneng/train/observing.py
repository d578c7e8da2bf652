"""Figures of a step beside its loss: gradients by part, how the state heads forget and correct.

Taken after the step and of what it left: its bits do not depend on them. Gradient norms are read
off at every logged step. The state heads are looked at while the body of the model reads one row of
validation text, at the first step and then at logged ones that are :data:`STEPS_APART` or more
apart: at most a per cent of the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.data.batch import ValidationData
from wuneng.distributed.whole import whole
from wuneng.distributed.wrapping import put_away
from wuneng.layers.recurrence_watch import (
    channel_half_life,
    in_context_rate,
    recurrence_watched,
)
from wuneng.layers.state.base import StateHeads
from wuneng.model.counting import part_of
from wuneng.model.head_loss import hidden_and_head
from wuneng.recipe import Training
from wuneng.train.step import Numerics, StepOutcome

__all__ = ["STEPS_APART", "Observer"]

STEPS_APART = 50
_LONGEST = 256
"""Tokens of the text that state heads are looked at over."""


class Observer:
    """Looks at one arm's model; ``model`` is the one that is saved, not what runs it compiled."""

    def __init__(
        self,
        model: nn.Module,
        training: Training,
        numerics: Numerics,
        text: ValidationData,
        rows: int = 1,
    ) -> None:
        """``rows``: of ``text`` that the body of the model reads at once."""
        self._model, self._training, self._numerics = model, training, numerics
        self._text, self._rows = text, rows
        self._row: tuple[Tensor, Tensor | None] | None = None
        self._parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in model.named_parameters():
            part = part_of(name).replace(" ", "_")
            self._parts.setdefault(part, []).append(parameter)
        self._heads = {
            f"layer_{heads.layer_idx}": heads
            for heads in model.modules()
            if isinstance(heads, StateHeads)
        }
        apart = training.log_every
        self._apart = apart * math.ceil(STEPS_APART / apart)

    def figures(self, step: int, outcome: StepOutcome) -> dict[str, Any]:
        """Of the logged ``step`` that ended with ``outcome``, for a row of metrics.jsonl.

        Returns:
            ``grad_norms``: 2-norm by part, before clipping; and at some steps ``half_life``, in
            tokens, the geometric mean over a layer's heads and channels, and ``in_context_rate``,
            the mean over tokens and heads, both by layer. Nothing where nothing was found.
        """
        found = {"grad_norms": self._gradient_norms(outcome)}
        if step == 1 or step % self._apart == 0:
            found |= self._state_heads()
        return {name: values for name, values in found.items() if values}

    def _gradient_norms(self, outcome: StepOutcome) -> dict[str, float]:
        if not math.isfinite(outcome.grad_norm):
            return {}
        foreach = self._numerics.device.type in ("cpu", "cuda")
        norms = {}
        for part, parameters in self._parts.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                norm = nn.utils.get_total_norm(gradients, foreach=foreach)
                norms[part] = whole(norm).float()
        clip, scale = self._training.clip, 1.0
        if clip and not outcome.reason:  # torch scaled every gradient by clip / (norm + 1e-6)
            scale = max(1.0, (outcome.grad_norm + 1e-6) / clip)
        values = torch.stack(list(norms.values())).tolist() if norms else []
        return {part: scale * value for part, value in zip(norms, values, strict=True)}

    @torch.no_grad()
    def _state_heads(self) -> dict[str, dict[str, float]]:
        if not self._heads:
            return {}
        rates: dict[str, tuple[Tensor, Tensor]] = {}
        row, documents = self._text_rows()
        training = self._model.training
        self._model.eval()  # dropout would draw from the generators
        try:
            with ExitStack() as stack:
                for layer, heads in self._heads.items():
                    stack.enter_context(recurrence_watched(heads, partial(_keep, rates, layer)))
                stack.enter_context(self._numerics.autocast())
                hidden_and_head(self._model, row, documents)
        finally:
            put_away(self._model)
            self._model.train(training)
        if not rates:
            return {}
        values = torch.stack([torch.stack(pair) for pair in rates.values()]).tolist()
        halves, corrections = ([pair[n] for pair in values] for n in (0, 1))
        return {
            "half_life": dict(zip(rates, halves, strict=True)),
            "in_context_rate": dict(zip(rates, corrections, strict=True)),
        }

    def _text_rows(self) -> tuple[Tensor, Tensor | None]:
        """``input_ids`` and ``document_ids`` ``[rows, T]``."""
        if self._row is None:
            batch = next(iter(self._text.batches()))
            part = (slice(0, self._rows), slice(0, _LONGEST))
            documents = None if batch.document_ids is None else batch.document_ids[part]
            device = self._numerics.device
            self._row = (
                batch.input_ids[part].to(device),
                None if documents is None else documents.to(device),
            )
        return self._row


def _keep(rates: dict[str, tuple[Tensor, Tensor]], layer: str, inputs: Sequence[Tensor]) -> None:
    """Half-life and in-context rate of one layer, a number each, of r, w, k, v, a, b."""
    w, b = (inputs[n].flatten(0, 1).float() for n in (1, 5))
    rates[layer] = channel_half_life(w).log().mean().exp(), in_context_rate(b).float().mean()
