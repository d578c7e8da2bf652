"""One optimiser step: accumulation, clipping, non-finite values."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.model.small import small_model
from tests.precision import assert_as_exact
from tests.train.tiny import TinyModel, counting_batch, tiny_training
from wuneng.bench.memory import peak_bytes
from wuneng.data.batch import Batch
from wuneng.errors import DataError, NonFiniteError
from wuneng.train.optimizer import build_optimizer
from wuneng.train.step import Numerics, StepOutcome, micro_batches, prepare_model, take_step

CPU = Numerics(torch.device("cpu"))


def one_step(batch: Batch, *, wide: bool = False, **changes: Any) -> tuple[StepOutcome, TinyModel]:
    """A step and its model, whose weights are those of every call (in float64 if ``wide``)."""
    torch.manual_seed(0)
    model = TinyModel().double() if wide else TinyModel()
    model.dropout.p = 0.0
    training = tiny_training(**changes)
    optimizer = build_optimizer(model, training)
    return take_step(model, optimizer, batch, training, CPU, step=7, arm="tiny"), model


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_micro_batches_give_the_mean_over_the_whole_batch(rows: int) -> None:
    batch = counting_batch(0, 6)
    scored = [(labels != -100).sum().item() for _, labels, _ in micro_batches(batch, rows)]
    assert len(set(scored)) > 1, "a mean of means would be right as well: the test shows nothing"
    whole, model = one_step(batch, clip=0.0)
    pieces, other = one_step(batch, clip=0.0, micro_batch_size=rows)
    exact, third = one_step(batch, clip=0.0, wide=True)

    def named(outcome: StepOutcome, model: TinyModel, dtype: torch.dtype) -> dict[str, Any]:
        numbers = {"loss": outcome.loss, "norm": outcome.grad_norm}
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return gradients | {name: torch.tensor(x, dtype=dtype) for name, x in numbers.items()}

    assert_as_exact(
        named(pieces, other, torch.float32),
        named(whole, model, torch.float32),
        named(exact, third, torch.float64),
    )


def test_loss_is_the_mean_over_scored_tokens() -> None:
    batch = counting_batch(0, 4)
    outcome, _ = one_step(batch)
    torch.manual_seed(0)
    model = TinyModel().eval()

    def mean(model: TinyModel) -> torch.Tensor:
        logits = model(batch.input_ids).logits.flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, batch.labels.flatten())

    reference, exact = mean(model), mean(model.double())
    assert_as_exact(torch.tensor(outcome.loss), reference, exact)
    assert outcome.tokens == batch.input_ids.numel()


def test_gradients_are_clipped_to_the_norm() -> None:
    outcome, model = one_step(counting_batch(0, 4), clip=1e-3)
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    assert outcome.grad_norm > 1e-2
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_document_ids_are_cut_with_their_rows() -> None:
    ids = torch.arange(8).view(4, 2)
    batch = Batch(ids, ids, ids.int(), "text", 2)
    parts = list(micro_batches(batch, 3))
    assert [part[0].shape[0] for part in parts] == [3, 1]
    assert all(torch.equal(inputs.int(), documents) for inputs, _, documents in parts)


def failing_step(poison: Any, **changes: Any) -> tuple[str, bool]:
    """The message of the error, and whether the weights stayed as they were."""
    torch.manual_seed(0)
    model = TinyModel()
    poison(model)
    training = tiny_training(**changes)
    optimizer = build_optimizer(model, training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(NonFiniteError) as caught:
        take_step(model, optimizer, counting_batch(0, 4), training, CPU, step=7, arm="mha")
    after = model.state_dict()
    same = all(torch.equal(before[n], after[n]) or before[n].isnan().any() for n in before)
    return str(caught.value), same


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    def poison(model: TinyModel) -> None:
        model.scale.fill_(float("nan"))

    message, untouched = failing_step(poison)
    assert untouched
    assert message.startswith("step 7, arm 'mha': the loss is nan")
    assert "learning_rate" in message


@pytest.mark.parametrize("micro", [None, 2])
def test_a_gradient_that_is_not_finite_is_named(micro: int | None) -> None:
    def poison(model: TinyModel) -> None:
        model.mix.bias.register_hook(lambda gradient: gradient * float("inf"))

    message, untouched = failing_step(poison, micro_batch_size=micro)
    assert untouched
    assert "the gradient of mix.bias is not finite;" in message
    assert "Try:" in message


def test_a_batch_without_scored_tokens_is_refused() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(DataError, match="no token of the batch"):
        one_step(Batch(ids, torch.full_like(ids, -100), None, "void", 3))


def test_bf16_autocast_keeps_the_loss_in_float32() -> None:
    torch.manual_seed(0)
    model = TinyModel()
    training = tiny_training()
    numerics = Numerics(torch.device("cpu"), torch.bfloat16)
    optimizer = build_optimizer(model, training)
    outcome = take_step(model, optimizer, counting_batch(0, 4), training, numerics, step=1, arm="t")
    assert torch.tensor(outcome.loss).bfloat16().item() != outcome.loss
    assert model.mix.weight.dtype is torch.float32


def test_activation_checkpointing_changes_memory_and_not_the_step() -> None:
    outcomes, recomputed, peaks = [], [], []
    tokens = torch.randint(11, (2, 129), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens[:, :-1], tokens[:, 1:], None, "draw", 128)
    for choice in ("none", 2, "full"):
        training = tiny_training(activation_checkpointing=choice)
        model = prepare_model(small_model(num_hidden_layers=4), training)
        recomputed.append([layer.gradient_checkpointing for layer in model.model.layers])
        optimizer = build_optimizer(model, training)

        def step(model: Any = model, optimizer: Any = optimizer, training: Any = training) -> None:
            outcomes.append(take_step(model, optimizer, batch, training, CPU, step=1, arm="t"))

        peaks.append(peak_bytes(step, CPU.device))
    assert recomputed == [[False] * 4, [True, False] * 2, [True] * 4]
    # The same operations in the same order.
    assert len({(outcome.loss, outcome.grad_norm) for outcome in outcomes}) == 1
    assert peaks[2] < 0.8 * peaks[1] < 0.8**2 * peaks[0]


@pytest.mark.parametrize(("written", "meant"), [(True, "full"), (False, "none"), (3, 3)])
def test_recipes_from_before_it_was_a_number_mean_the_same(written: Any, meant: Any) -> None:
    assert tiny_training(activation_checkpointing=written).activation_checkpointing == meant


@pytest.mark.parametrize("written", [0, -1, "half", 1.5, 10**9])
def test_activation_checkpointing_of_anything_else_is_refused(written: Any) -> None:
    with pytest.raises(ValidationError, match="none, full or a number of layers from 1"):
        tiny_training(activation_checkpointing=written)
