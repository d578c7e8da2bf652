"""Captured passes: the same steps, whatever micro-batches and documents there are.

A CPU has no CUDA graphs: here what was captured is run again, into the same memory. What a real
graph does is in ``test_captured_gpu``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.small import small_model
from tests.train.tiny import TinyModel, counting_batch
from wuneng.data.batch import Batch
from wuneng.errors import RunError
from wuneng.recipe import Training
from wuneng.train import captured
from wuneng.train.captured import CapturedPasses
from wuneng.train.optimizer import build_optimizer
from wuneng.train.step import Numerics, StepOutcome, take_step

CPU = torch.device("cpu")
ROWS, TOKENS = 4, 16


class Rerun:
    """Graphs of a CPU."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.captures = 0

    def warm_up(self, run: Callable[[], None]) -> None:
        run()
        run()

    def capture(self, run: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        before = [p.grad for p in self.parameters]
        run()
        held = [p.grad for p in self.parameters]

        def replay() -> None:
            for p, grad in zip(self.parameters, before, strict=True):
                p.grad = grad
            run()
            for p, grad in zip(self.parameters, held, strict=True):
                if grad is not None and p.grad is not grad:
                    grad.copy_(p.grad)

        return replay


def batch(seed: int, *, documents: int = 0, scored: float = 1.0) -> Batch:
    """Random tokens; in rows of so many documents at most, with so large a share scored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(61, (ROWS, TOKENS), generator=generator)
    labels = torch.randint(61, (ROWS, TOKENS), generator=generator)
    labels[torch.rand(ROWS, TOKENS, generator=generator) > scored] = -100
    packed = torch.randint(documents or 1, (ROWS, TOKENS), generator=generator).sort(1).values
    return Batch(ids, labels, packed if documents else None, "random", TOKENS)


def settings(**changes: Any) -> Training:
    return Training(steps=4, sequence_length=TOKENS, batch_size=ROWS, **changes)


def steps(
    batches: list[Batch], training: Training, *, capturing: bool
) -> tuple[list[StepOutcome], dict[str, Tensor], Rerun]:
    model = small_model("default").train()
    graphs = Rerun(model)
    numerics = Numerics(CPU)
    if capturing:
        passes = CapturedPasses(CPU, numerics.autocast, graphs)
        numerics = replace(numerics, captured=passes)
    optimizer = build_optimizer(model, training)
    outcomes = [
        take_step(model, optimizer, one, training, numerics, step=n, arm="arm")
        for n, one in enumerate(batches, 1)
    ]
    return outcomes, dict(model.named_parameters()), graphs


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("documents", [0, 5])
def test_the_same_steps(micro: int | None, documents: int) -> None:
    """64 tokens are scored: dividing by them and multiplying by their inverse are the same."""
    batches = [batch(seed, documents=documents) for seed in range(4)]
    training = settings(micro_batch_size=micro)
    plain, weights, _ = steps(batches, training, capturing=False)
    found, others, graphs = steps(batches, training, capturing=True)
    assert graphs.captures
    assert found == plain
    for name, weight in weights.items():
        assert torch.equal(others[name], weight), name


def test_what_is_not_scored_counts_nothing() -> None:
    batches = [batch(seed, scored=0.6) for seed in range(3)]
    plain, weights, _ = steps(batches, settings(), capturing=False)
    found, others, _ = steps(batches, settings(), capturing=True)
    for one, other in zip(found, plain, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-4, atol=1e-5)


def test_a_shape_is_captured_once() -> None:
    batches = [batch(seed) for seed in range(5)]
    assert steps(batches, settings(), capturing=True)[2].captures == 1
    assert steps(batches, settings(micro_batch_size=1), capturing=True)[2].captures == 1
    # Powers of two of documents: 4 rows have 4 to 20.
    packed = [batch(seed, documents=1 + seed % 5) for seed in range(15)]
    assert steps(packed, settings(), capturing=True)[2].captures <= 4


def test_beyond_so_many_shapes_passes_are_launched_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MOST", 2)
    batches = [batch(0, documents=d) for d in (2, 3, 5, 9)]
    plain, weights, _ = steps(batches, settings(), capturing=False)
    found, others, graphs = steps(batches, settings(), capturing=True)
    assert graphs.captures == 2
    assert found == plain
    assert all(torch.equal(others[name], weight) for name, weight in weights.items())


def test_gradients_stay_where_they_are() -> None:
    model = small_model("default").train()
    passes = CapturedPasses(CPU, Numerics(CPU).autocast, Rerun(model))
    one = batch(0)
    pieces = [(one.input_ids, one.labels, None)]
    places = []
    for _ in range(2):
        model.zero_grad(set_to_none=True)
        passes.backward(model, pieces, 64)
        places.append([p.grad.data_ptr() for p in model.parameters() if p.grad is not None])
    assert places[0] == places[1]


def test_warming_up_draws_no_random_numbers() -> None:
    states = []
    for capturing in (False, True):
        model = TinyModel().train()
        torch.manual_seed(5)
        numerics = Numerics(CPU)
        if capturing:
            graphs = Rerun(model)
            graphs.capture = lambda run: run  # a capture draws nothing either
            numerics = replace(numerics, captured=CapturedPasses(CPU, numerics.autocast, graphs))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        take_step(model, optimizer, counting_batch(0, 4), settings(), numerics, step=1, arm="tiny")
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)


def test_what_cannot_be_captured_is_refused() -> None:
    model = small_model("default").train()

    class Refusing(Rerun):
        def capture(self, run: Callable[[], None]) -> Callable[[], None]:
            try:
                raise ValueError("operation not permitted when stream is capturing\nmore")
            except ValueError:
                raise RuntimeError("due to a previous error during capture")  # noqa: B904

    passes = CapturedPasses(CPU, Numerics(CPU).autocast, Refusing(model))
    one = batch(0)
    with pytest.raises(RunError, match=r"training.cuda_graph.*not permitted.*to false"):
        passes.backward(model, [(one.input_ids, one.labels, None)], 64)


def test_memory_that_is_missing_is_told_as_such() -> None:
    model = small_model("default").train()

    class Full(Rerun):
        def warm_up(self, run: Callable[[], None]) -> None:
            raise torch.OutOfMemoryError("full")

    passes = CapturedPasses(CPU, Numerics(CPU).autocast, Full(model))
    one = batch(0)
    with pytest.raises(torch.OutOfMemoryError):
        passes.backward(model, [(one.input_ids, one.labels, None)], 64)


def test_what_was_captured_is_let_go_of() -> None:
    model = small_model("default").train()
    graphs = Rerun(model)
    passes = CapturedPasses(CPU, Numerics(CPU).autocast, graphs)
    one = batch(0, documents=3)
    pieces = [(one.input_ids, one.labels, one.document_ids)]
    losses = []
    for _ in range(2):
        losses.append(passes.backward(model, pieces, 64))
        passes.forget()
        assert all(p.grad is None for p in model.parameters())
    assert graphs.captures == 2
    assert torch.equal(*losses)
