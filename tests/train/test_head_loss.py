"""A training step and a validation over many words never hold all logits, and change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.largest import Largest
from tests.train.tiny import tiny_training
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.data.batch import Batch
from wuneng.ops import using
from wuneng.ops.linear_cross_entropy.reference import distillation
from wuneng.recipe import Distillation
from wuneng.train.distillation import Teacher
from wuneng.train.optimizer import build_optimizer
from wuneng.train.quality import measure
from wuneng.train.step import Numerics, take_step

WORDS, ROWS, LENGTH = 9001, 2, 515
CPU = Numerics(torch.device("cpu"))


def model(seed: int, **changes: Any) -> WuNengForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = {"vocab_size": WORDS, "num_state_heads": 1, "decay_rank": 4, "rate_rank": 4}
    return WuNengForCausalLM(WuNengConfig(**sizes, **config, **changes))


def batch() -> Batch:
    ids = torch.randint(WORDS, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(5))
    labels = ids[:, 1:].clone()
    labels[0, 3:9] = -100
    return Batch(ids[:, :-1].contiguous(), labels, None, "text", LENGTH)


def stepped(trained: nn.Module, teacher: Teacher | None) -> tuple[Any, dict[str, torch.Tensor]]:
    training = tiny_training()
    optimizer = build_optimizer(trained, training)
    found = take_step(trained, optimizer, batch(), training, CPU, step=1, arm="t", teacher=teacher)
    gradients = {n: p.grad for n, p in trained.named_parameters() if p.grad is not None}
    return found, gradients


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("taught", [False, True])
def test_a_step_is_the_same_and_its_logits_never_whole(tied: bool, taught: bool) -> None:
    teacher = Teacher(model(1).eval(), Distillation(kl=0.7, ce=0.3)) if taught else None
    with Largest() as largest:
        found, gradients = stepped(model(0, tie_word_embeddings=tied), teacher)
    with Largest() as whole, using("reference"):
        expected, exact = stepped(model(0, tie_word_embeddings=tied), teacher)
    assert largest.numel < WORDS * ROWS * LENGTH / 3
    assert whole.numel >= WORDS * ROWS * LENGTH - 6 * WORDS
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
    assert found.parts == pytest.approx(expected.parts, rel=1e-5)
    largest_entry = max(g.abs().max() for g in exact.values())
    for name, gradient in gradients.items():
        assert (gradient - exact[name]).abs().max() <= 1e-4 * largest_entry, name


class Doubled(nn.Linear):
    """A head that others have changed: it is called."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("how", ["class", "hook"])
def test_a_changed_head_is_called_chunk_by_chunk(how: str) -> None:
    outcomes = []
    for backend in ("native", "reference"):
        changed = model(0)
        if how == "class":
            changed.lm_head.__class__ = Doubled
        else:
            changed.lm_head.register_forward_hook(lambda module, given, out: 2 * out)
        with Largest() as largest, using(backend):
            outcomes.append(stepped(changed, None)[0])
        assert largest.numel < WORDS * ROWS * LENGTH / 3
    plain, _ = stepped(model(0), None)
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-5)
    assert abs(outcomes[0].loss - plain.loss) > 1e-4


@pytest.mark.parametrize("changes", [{"logits_scaling": 0.5}, {"logit_softcap": 5.0}])
def test_logits_that_are_scaled_or_capped_are_learnt_from_chunk_by_chunk(changes: Any) -> None:
    own, taught = model(0, **changes), model(1, **changes).eval()
    settings = Distillation(kl=0.7, ce=0.3, temperature=2.0)
    with Largest() as largest:
        found, gradients = stepped(own, Teacher(taught, settings))
    assert largest.numel < WORDS * ROWS * LENGTH / 3
    given = batch()
    with torch.no_grad():
        other = taught(given.input_ids).logits
    again = model(0, **changes)
    logits = again(given.input_ids, use_cache=False).logits
    kl, ce = distillation(logits, other, given.labels, -100, 2.0) / (given.labels >= 0).sum()
    loss = 0.7 * kl + 0.3 * ce
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    loss.backward()
    name = "model.embed_tokens.weight"
    exact = dict(again.named_parameters())[name].grad
    assert (gradients[name] - exact).abs().max() <= 1e-4 * exact.abs().max()


def test_a_validation_is_the_same_and_its_logits_never_whole() -> None:
    with Largest() as largest:
        found = measure(model(0), [batch()], CPU)
    logits = model(0)(batch().input_ids, use_cache=False).logits.double()
    nats = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch().labels.flatten(), ignore_index=-100, reduction="none"
    )
    assert largest.numel < WORDS * ROWS * LENGTH / 3
    rows = found.rows["text"][str(LENGTH)]
    assert rows["tokens"] == [LENGTH - 6, LENGTH]
    assert rows["nats"] == pytest.approx(nats.view(ROWS, LENGTH).sum(1).tolist(), rel=1e-6)
    right = (logits.argmax(-1) == batch().labels).sum(1)
    assert rows["right"] == right.tolist()


def test_labels_and_a_loss_of_the_head_are_one_too_many() -> None:
    ids = batch().input_ids[:, :4]
    with pytest.raises(ValueError, match="in place of labels"):
        model(0)(ids, labels=ids, head_loss=lambda hidden, head: hidden.sum())
