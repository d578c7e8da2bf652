"""Forward and backward passes captured in CUDA graphs: launched at once, not kernel by kernel.

A GPU's host launches thousands of kernels in a training step, and a fast GPU waits for it
(docs/performance.md). A pass is captured at the first batch of its shape and replayed from then on;
clipping and the optimiser's step, a few launches, stay outside.

    tokens, labels, documents --copied--> [ forward, loss, backward ] --> loss, gradients

The same kernels run in the same order on the same numbers, so that nothing else changes. What a
graph cannot follow, a choice that the host makes by a value on the device, is refused while it is
captured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from wuneng.errors import RunError
from wuneng.layers.layout import documents_at_most
from wuneng.model.head_loss import ask, summed_cross_entropy
from wuneng.ops.wkv7.triton_kept_tables import tables_of_capture
from wuneng.train.cuda_graphs import CudaGraphs

__all__ = ["CapturedPasses", "Graphs"]

MOST = 8
"""Shapes that are captured; a batch of yet another is launched kernel by kernel."""

#: ``(input_ids [B, T], labels [B, T], document_ids [B, T] or None)`` in the host's memory.
Piece = tuple[Tensor, Tensor, Tensor | None]


class Graphs(Protocol):
    """What makes a captured function of one that reads and writes the same memory at every call."""

    def warm_up(self, run: Callable[[], None]) -> None:
        """Call it until nothing is compiled or chosen any more."""

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does again what ``run``, called once here, has the device do."""


class _Shape(NamedTuple):
    """What a pass is captured for."""

    rows: int
    tokens: int
    most_documents: int | None
    """Of all rows together; None: rows are whole."""
    is_summed: bool
    """Gradients are added to those that are there, as several micro-batches' are."""


@dataclass
class _Pass:
    """A captured pass: what it reads, what replays it, and what it leaves."""

    inputs: list[Tensor]
    inverse: Tensor
    """1 / the scored tokens of the whole batch: asked to divide by a number, torch multiplies by
    its inverse on a GPU too."""
    loss: Tensor
    replay: Callable[[], None] = lambda: None
    gradients: Sequence[tuple[nn.Parameter, Tensor]] = ()


class CapturedPasses:
    """The passes of one model, whose parameters stay where they are and keep ``requires_grad``."""

    def __init__(
        self,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]],
        graphs: Graphs | None = None,
    ) -> None:
        """``autocast``: in which the model is called; ``graphs``: in place of CUDA's, for tests."""
        self._device, self._autocast = device, autocast
        self._graphs = graphs or CudaGraphs(device)
        self._passes: dict[_Shape, _Pass] = {}
        self._sums: dict[nn.Parameter, Tensor] = {}

    def takes(self, pieces: Sequence[Piece]) -> bool:
        """Whether the micro-batches of a step have captured shapes, or may still have."""
        return len({*self._passes, *_shapes(pieces)}) <= MOST

    def backward(self, model: nn.Module, pieces: Sequence[Piece], scored: int) -> Tensor:
        """Gradients of the mean over ``scored`` tokens into ``.grad``, whose memory the next call
        writes again; the loss, a scalar, comes back.

        Args:
            model: as ``wuneng.train.step.take_step``'s.

        Raises:
            RunError: a pass cannot be captured.
        """
        shapes = _shapes(pieces)
        for shape, piece in zip(shapes, pieces, strict=True):
            if shape not in self._passes:
                self._passes[shape] = self._captured(model, shape, piece)
        total = torch.zeros((), device=self._device)
        if self._sums:
            torch._foreach_zero_(list(self._sums.values()))
        for shape, piece in zip(shapes, pieces, strict=True):
            found = self._passes[shape]
            _fill(found, piece, scored)
            found.replay()
            total += found.loss
        for parameter, gradient in self._passes[shapes[-1]].gradients:
            parameter.grad = gradient
        return total

    def forget(self) -> None:
        """Let go of what was captured, and of the gradients' memory: the next pass is captured
        anew."""
        for found in self._passes.values():
            for parameter, _ in found.gradients:
                parameter.grad = None
        self._passes.clear()
        self._sums.clear()

    def _captured(self, model: nn.Module, shape: _Shape, piece: Piece) -> _Pass:
        one = torch.ones((), device=self._device)
        inputs = [x.to(self._device, copy=True) for x in piece if x is not None]
        found = _Pass(inputs, one, torch.zeros_like(one))
        trained = [p for p in model.parameters() if p.requires_grad]
        try:
            forks = [self._device] if self._device.type == "cuda" else []
            with torch.random.fork_rng(forks):
                self._graphs.warm_up(lambda: self._run(model, shape, found))
            if shape.is_summed:
                reached = (p for p in trained if p.grad is not None)
                self._sums |= {p: torch.zeros_like(p) for p in reached if p not in self._sums}
            for p in trained:
                p.grad = self._sums.get(p) if shape.is_summed else None
            with tables_of_capture():
                found.replay = self._graphs.capture(lambda: self._run(model, shape, found))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise _refusal(error) from error
        found.gradients = [(p, p.grad) for p in trained if p.grad is not None]
        return found

    def _run(self, model: nn.Module, shape: _Shape, static: _Pass) -> None:
        ids, labels, *documents = static.inputs
        with ExitStack() as contexts:
            contexts.enter_context(self._autocast())
            if shape.most_documents is not None:
                contexts.enter_context(documents_at_most(shape.most_documents))
            wanted = summed_cross_entropy(labels)
            loss = ask(model, ids, documents[0] if documents else None, wanted)
        loss = loss * static.inverse
        loss.backward()
        static.loss.copy_(loss.detach())


def _shapes(pieces: Sequence[Piece]) -> list[_Shape]:
    # With documents several shapes are likely, whose gradients would each have memory of their own.
    is_summed = len(pieces) > 1 or pieces[0][2] is not None
    return [
        _Shape(
            rows=ids.shape[0],
            tokens=ids.shape[1],
            most_documents=None if documents is None else _power_above(documents),
            is_summed=is_summed,
        )
        for ids, _, documents in pieces
    ]


def _power_above(document_ids: Tensor) -> int:
    """A power of two that is no less than the documents in all rows: few numbers of them are
    captured then."""
    starts = len(document_ids) + int((document_ids[:, 1:] != document_ids[:, :-1]).sum())
    return 1 << (starts - 1).bit_length()


def _fill(static: _Pass, piece: Piece, scored: int) -> None:
    given = [x for x in piece if x is not None]
    for held, value in zip(static.inputs, given, strict=True):
        held.copy_(value)
    static.inverse.fill_(float(torch.tensor(float(scored)).reciprocal()))


def _refusal(error: BaseException) -> RunError:
    """By the first error: torch raises another when it ends a capture that has failed."""
    while error.__context__ is not None:
        error = error.__context__
    reason = str(error).partition("\n")[0]
    return RunError(
        f"training.cuda_graph: the pass cannot be captured ({reason}). Set training.cuda_graph to "
        "false"
    )
