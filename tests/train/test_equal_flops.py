"""LoRA at as many training FLOPs as new heads, beside LoRA of as many parameters."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train.small_upgrade import recipe
from tests.train.test_stages import place  # noqa: F401  # the same Llama and documents
from wuneng.convert import ConvertedSources
from wuneng.errors import RecipeError
from wuneng.train.plan import RunPlan, plan_run

LORA = "{model: {num_state_heads: 0}, lora: {match: wuneng, match_in: flops}}"
EQUAL = "{model: {num_state_heads: 0}, lora: {match: wuneng}}"
BOTH = "{model: {num_state_heads: 1}, train: new+lora, lora: {match: wuneng, match_in: flops}}"


def planned(place: Path, arms: str, *changes: str) -> RunPlan:  # noqa: F811
    return plan_run(recipe(place, f"arms={{wuneng: {{}}, {arms}}}", *changes), ConvertedSources())


@pytest.mark.parametrize("length", [32, 100])
def test_flops_agree_where_parameters_need_not(place: Path, length: int) -> None:  # noqa: F811
    arms = f"lora: {EQUAL}, flops: {LORA}, both: {BOTH}"
    plan = planned(place, arms, f"training.sequence_length={length}")
    flops = {name: arm.facts.flops_per_token for name, arm in plan.arms.items()}
    assert flops["flops"] == pytest.approx(flops["wuneng"], rel=0.005)
    assert flops["both"] == pytest.approx(flops["wuneng"], rel=0.005)
    assert abs(flops["lora"] - flops["wuneng"]) > 2 * abs(flops["flops"] - flops["wuneng"])
    trainable = {name: arm.facts.trainable for name, arm in plan.arms.items()}
    assert trainable["lora"] == pytest.approx(trainable["wuneng"], rel=0.02)
    assert trainable["flops"] != trainable["lora"]


def test_an_arm_that_takes_more_already_is_refused(place: Path) -> None:  # noqa: F811
    arms = f"small: {{model: {{num_state_heads: 0}}, train: [norm]}}, flops: {LORA}"
    with pytest.raises(RecipeError, match=r"arms.flops.lora.match_in: small trains on a token wi"):
        planned(place, arms.replace("match: wuneng", "match: small"))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("lora: {rank: 2, match_in: flops}", "match_in beside match alone"),
        (
            "stages: [tune], lora: {match: wuneng, match_in: flops}",
            "expected parameters where flops or wuneng has stages or distill",
        ),
    ],
)
def test_what_cannot_be_matched(place: Path, arm: str, message: str) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=message):
        planned(place, f"flops: {{model: {{num_state_heads: 0}}, {arm}}}")
