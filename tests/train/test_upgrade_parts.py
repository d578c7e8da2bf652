"""LoRA's size, a teacher's loss, learning rates by name, and what an upgrade's figures show."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.precision import assert_as_exact
from tests.train.tiny import TinyModel, counting_batch, tiny_training
from wuneng.errors import RecipeError
from wuneng.model.parameter_groups import groups_of
from wuneng.recipe import Distillation, LoraSettings
from wuneng.train.distillation import Teacher
from wuneng.train.lora import adapter_parameters, adapter_ranks
from wuneng.train.optimizer import build_optimizer, set_learning_rate
from wuneng.train.step import Numerics, take_step
from wuneng.train.summary import closing_sentence, results_table

SHAPES = {
    f"layers.{i}.{n}_proj": s for i in range(3) for n, s in {"q": (8, 8), "up": (8, 40)}.items()
}
LORA = LoraSettings(match="wuneng", targets=["q_proj", "up_proj"])


@pytest.mark.parametrize("budget", [192, 210, 500, 1000, 4321])
def test_adapters_come_near_any_budget(budget: int) -> None:
    ranks = adapter_ranks(LORA, SHAPES, budget, "lora")
    assert max(ranks.values()) - min(ranks.values()) <= 1
    total = sum(adapter_parameters(ranks, SHAPES).values())
    assert 0 <= budget - total < 16


def test_a_budget_below_every_adapter_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"lora.match: no ranks give 15 parameters \(0 come"):
        adapter_ranks(LORA, SHAPES, 15, "lora")


def test_an_unknown_target_is_named() -> None:
    lora = LoraSettings(rank=2, targets=["q_porj"])
    with pytest.raises(RecipeError, match=r"no linear layer is called 'q_porj'.*Did you mean 'q_"):
        adapter_ranks(lora, SHAPES, None, "lora")


class Fixed(nn.Module):
    """A teacher that says the same at every call."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("fixed", logits)

    def forward(self, **inputs: Any) -> Any:
        assert not torch.is_grad_enabled()
        return type("Output", (), {"logits": self.fixed})


def test_the_divergence_is_the_textbooks() -> None:
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64) for _ in "ab")
    labels = torch.tensor([[1, -100, 2], [0, 4, -100]])
    settings = Distillation(kl=0.7, ce=0.2, temperature=3.0)
    wanted = Teacher(Fixed(other), settings).loss(labels, None, labels)
    total, *parts = wanted(own, nn.Identity())
    p, q = F.softmax(other / 3, -1), F.softmax(own / 3, -1)
    by_hand = 9 * (p * (p / q).log()).sum(-1)[labels != -100].sum()
    entropy = F.cross_entropy(own.flatten(0, 1), labels.flatten(), reduction="sum")
    exact = torch.stack([by_hand, entropy, 0.7 * by_hand + 0.2 * entropy])
    assert_as_exact(torch.stack([*parts, total]), exact.float(), exact)


def test_micro_batches_do_not_change_what_a_teacher_asks_for() -> None:
    outcomes = []
    for rows in (None, 2):
        torch.manual_seed(0)
        model = TinyModel().eval()
        teacher = Teacher(TinyModel().eval(), Distillation(ce=0.5))
        training = tiny_training(micro_batch_size=rows)
        optimizer, numerics = build_optimizer(model, training), Numerics(torch.device("cpu"))
        batch = counting_batch(0, 4)
        outcomes.append(
            take_step(model, optimizer, batch, training, numerics, step=1, arm="t", teacher=teacher)
        )
    assert outcomes[0].loss == pytest.approx(outcomes[1].loss, rel=1e-6)
    assert outcomes[0].parts == pytest.approx(outcomes[1].parts, rel=1e-6)
    assert outcomes[0].loss == pytest.approx(
        outcomes[0].parts["kl"] + 0.5 * outcomes[0].parts["ce"], rel=1e-6
    )


def test_learning_rates_go_by_name_and_the_first_pattern_counts() -> None:
    model = TinyModel()
    model.embed.weight.requires_grad_(False)
    training = tiny_training(learning_rates={r"mix\.bias": 0.5, "mix": 3.0})
    kinds = groups_of(model) | {"w0": "double_lr"}
    optimizer = build_optimizer(model, training, kinds)
    set_learning_rate(optimizer, 0.1)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    assert found == {
        "embed.weight": None,
        "mix.weight": pytest.approx(0.3),
        "mix.bias": pytest.approx(0.05),
        "w0": pytest.approx(0.2),
    }


def results(
    wuneng: float, lora: float | None, *, spread: float = 0.001, seeds: int = 3
) -> dict[str, Any]:
    """A finished upgrade whose source has 1.1 bits per byte."""
    name = "text/bits_per_byte"
    values = {"source": 1.1, "wuneng": wuneng} | ({} if lora is None else {"lora": lora})
    kinds = {"source": "none", "wuneng": "new", "lora": "lora"}
    arms = {
        arm: {
            "kind": "hybrid" if arm == "wuneng" else "attention",
            "init_from": "llama",
            "trains": kinds[arm],
            "parameters": 1000,
            "seconds": 1.0,
            "trainable_parameters": 0 if arm == "source" else 100,
            "added_percent": 0.0,
            "training_flops": 0.0,
            "tokens": 5000.0,
            "tokens_per_second": 0.0,
            "seeds": [0, 1, 2] if seeds == 3 else [0],
            "quality": {name: value},
            "quality_std": {name: 0.0},
            "standard_error": {name: 0.02},
            "examples": {name: 90},
        }
        for arm, value in values.items()
    }
    pairs = [("source", "wuneng"), ("source", "lora"), ("wuneng", "lora")]
    paired = [
        {
            "arms": list(pair),
            "figure": name,
            "standard_error": spread,
            "difference": values[pair[0]] - values[pair[1]],
        }
        for pair in pairs
        if set(pair) <= set(values)
    ]
    return {"name": "up", "reference": "source", "arms": arms, "paired": paired}


@pytest.mark.parametrize(
    ("wuneng", "lora", "said", "unsaid"),
    [
        (1.00, 1.05, "is credited to the state and middle heads as configured", "nothing is"),
        (
            1.00,
            1.001,
            "credited to training that many parameters and not to the state",
            "also better",
        ),
        (1.05, 1.00, "The LoRA control does better", "no difference"),
        (1.099, 1.099, "no difference beyond noise from the source", "credited"),
        (1.15, 1.20, "neither is better than the source", "credited"),
        (1.00, None, "no LoRA control was trained, so nothing is credited", "as configured"),
    ],
)
def test_a_gain_counts_only_where_lora_does_not_have_it(
    wuneng: float, lora: float | None, said: str, unsaid: str
) -> None:
    sentence = closing_sentence(results(wuneng, lora))
    assert said in sentence
    assert unsaid not in sentence


@pytest.mark.parametrize(
    ("wuneng", "lora", "claims"),
    [
        (1.0, 1.05, ("wuneng is better than the source on", "LoRA control is worse on")),
        (1.2, 1.05, ("wuneng is worse than the source on", "LoRA control is better on")),
    ],
)
def test_one_seed_shows_these_rows_and_gives_no_verdict(
    wuneng: float, lora: float, claims: tuple[str, str]
) -> None:
    """However small the error over rows is."""
    sentence = closing_sentence(results(wuneng, lora, spread=1e-5, seeds=1))
    for claim in claims:
        assert f"{claim} these rows (" in sentence
    assert sentence.endswith("no verdict can be given and nothing is credited.")
    assert "as configured" not in sentence


def test_one_seed_without_a_difference() -> None:
    sentence = closing_sentence(results(1.1, 1.1, seeds=1))
    assert "no difference beyond noise from the source" in sentence
    assert "Against the LoRA control there is no difference beyond noise" in sentence


def test_the_table_shows_intervals_and_differences_from_the_source() -> None:
    table = results_table(results(1.0, 1.05, seeds=1))
    rows = {row[0]: row[1:] for row in table.rows}
    half = 1.959964 * 0.02
    assert rows["text/bits_per_byte, 95 % interval"][1] == f"{1 - half:.3f} to {1 + half:.3f}"
    assert rows["text/bits_per_byte against source"] == (
        "",
        "-0.1000 (-0.1020 to -0.0980)",
        "-0.0500 (-0.0520 to -0.0480)",
    )
    assert rows["trainable parameters"] == ("0", "100", "100")
    assert math.isclose(half, 0.0392, rel_tol=1e-3)


def test_a_control_of_the_state_is_not_the_upgrade() -> None:
    found = results(1.0, 1.05)
    control = {**found["arms"]["wuneng"], "state_control": "donor"}
    found["arms"] = {"wuneng-donor": control, **found["arms"]}
    assert closing_sentence(found) == closing_sentence(results(1.0, 1.05))
