"""Quality figures against sums done by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from wuneng.data.batch import Batch
from wuneng.errors import NonFiniteError
from wuneng.train.quality import measure
from wuneng.train.step import Numerics

CPU = Numerics(torch.device("cpu"))
VOCAB = 5


class Sure(nn.Module):
    """Predicts its input token with probability 0.6 and each other token with 0.1."""

    def forward(self, input_ids: Tensor, document_ids: Any = None, use_cache: bool = True) -> Any:
        assert not self.training
        assert not use_cache
        assert not torch.is_grad_enabled()
        probabilities = torch.full((*input_ids.shape, VOCAB), 0.1)
        return SimpleNamespace(logits=probabilities.scatter(-1, input_ids[..., None], 0.6).log())


def batch(inputs: list[list[int]], labels: list[list[int]], **changes: Any) -> Batch:
    values = {"document_ids": None, "task": "recall", "length": len(inputs[0])} | changes
    return Batch(torch.tensor(inputs), torch.tensor(labels), **values)


def test_accuracy_by_length_and_loss_at_the_shortest() -> None:
    quality = measure(
        Sure(),
        [
            batch([[1, 2, 3, 4]], [[1, 2, 0, 0]]),
            batch([[1, 2], [3, 4]], [[1, -100], [0, 4]]),
        ],
        CPU,
    )
    assert quality.values == pytest.approx(
        {
            "recall/accuracy@2": 2 / 3,
            "recall/accuracy@4": 1 / 2,
            "recall/loss": -(2 * math.log(0.6) + math.log(0.1)) / 3,
        }
    )
    assert quality.examples == {"recall/accuracy@2": 2, "recall/accuracy@4": 1, "recall/loss": 2}


def test_bits_per_byte_and_perplexity_of_text() -> None:
    text = {"task": "text", "row_bytes": (6,)}
    quality = measure(
        Sure(), [batch([[1, 2]], [[1, 0]], **text), batch([[1, 2]], [[1, 2]], **text)], CPU
    )
    nats = -(3 * math.log(0.6) + math.log(0.1))
    assert quality.values == pytest.approx(
        {
            "text/loss": nats / 4,
            "text/perplexity": math.exp(nats / 4),
            "text/bits_per_byte": nats / math.log(2) / 12,
        }
    )


def test_bits_per_byte_weighs_rows_by_their_bytes() -> None:
    """Rows of as many tokens may spell few bytes or many; the figure's error has to know."""
    sizes = (2, 40, 3, 9, 30)
    labels = [[1, 0], [1, 2], [1, 0], [0, 0], [1, 2]]
    quality = measure(Sure(), [batch([[1, 2]] * 5, labels, task="text", row_bytes=sizes)], CPU)
    right, wrong = -math.log(0.6), -math.log(0.1)
    nats = [right + wrong, 2 * right, right + wrong, 2 * wrong, 2 * right]
    rate = sum(nats) / sum(sizes)
    residuals = [n - rate * size for n, size in zip(nats, sizes, strict=True)]
    error = math.sqrt(5 / 4 * sum(r * r for r in residuals)) / sum(sizes) / math.log(2)
    assert quality.standard_errors["text/bits_per_byte"] == pytest.approx(error)
    assert quality.rows["text"]["2"]["bytes"] == list(sizes)


def test_a_row_without_scored_positions_has_no_bytes_either() -> None:
    given = batch([[1, 2]] * 3, [[1, 0], [-100, -100], [1, 2]], task="text", row_bytes=(4, 0, 6))
    rows = measure(Sure(), [given], CPU, micro_batch_size=2).rows["text"]["2"]
    assert rows["bytes"] == [4, 6]
    assert rows["tokens"] == [2, 2]


def test_rows_are_the_unit_of_the_standard_error() -> None:
    """A row that is right or wrong as a whole is one trial however many positions it scores."""
    rows = torch.arange(40) % 2
    wide = batch([[1] * 8] * 40, [[1 if row else 0] * 8 for row in rows.tolist()])
    narrow = batch([[1]] * 40, [[1 if row else 0] for row in rows.tolist()])
    for given, name in ((wide, "recall/accuracy@8"), (narrow, "recall/accuracy@1")):
        quality = measure(Sure(), [given], CPU)
        assert quality.standard_errors[name] == pytest.approx(math.sqrt(0.25 / 39))
        assert quality.examples[name] == 40


def test_micro_batches_change_nothing() -> None:
    given = batch([[1, 2], [3, 4], [0, 1]], [[1, 0], [3, -100], [-100, -100]])
    whole = measure(Sure(), [given], CPU)
    assert measure(Sure(), [given], CPU, micro_batch_size=2) == whole
    assert whole.examples["recall/accuracy@2"] == 2, "a row without scored positions counts"


def test_the_model_comes_back_in_its_mode_even_when_stopped() -> None:
    model = Sure().train()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, [batch([[1]], [[1]])], CPU, before_batch=stop)
    assert model.training


class Blank(Sure):
    """A model whose third row of a batch has no finite logit."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.layer = nn.Identity()

    def forward(self, input_ids: Tensor, document_ids: Any = None, use_cache: bool = True) -> Any:
        found = super().forward(input_ids, document_ids, use_cache)
        spoiled = torch.where(input_ids[..., None] == 4, self.value, found.logits)
        return SimpleNamespace(logits=self.layer(spoiled))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite_stops_with_its_number_and_layer(value: float) -> None:
    given = batch([[1], [2], [4], [3]], [[1], [2], [1], [3]])
    message = "validation row 6: .* is layer"
    with pytest.raises(NonFiniteError, match=message):
        measure(Blank(value), [batch([[1]] * 4, [[1]] * 4), given], CPU, micro_batch_size=3)
    ignored = batch([[1], [4]], [[1], [-100]])
    assert measure(Blank(value), [ignored], CPU).examples["recall/accuracy@1"] == 1


class Overflowing(nn.Module):
    """Finite in float32; a product of float16 is not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(1, VOCAB)
        self.large = nn.Linear(VOCAB, VOCAB)
        nn.init.constant_(self.first.weight, 400.0)
        nn.init.constant_(self.large.weight, 400.0)

    def forward(self, input_ids: Tensor, document_ids: Any = None, use_cache: bool = True) -> Any:
        return SimpleNamespace(logits=self.large(self.first(input_ids[..., None].float())))


@pytest.mark.parametrize("compiled", [False, True])
def test_an_overflow_of_the_run_s_precision_is_found_where_it_was(compiled: bool) -> None:
    model: Any = Overflowing()
    if compiled:
        model = torch.compile(model, backend="eager")
    half = Numerics(torch.device("cpu"), torch.float16)
    with pytest.raises(NonFiniteError, match=r"the first layer that is not finite is large$"):
        measure(model, [batch([[1]], [[1]])], half)
