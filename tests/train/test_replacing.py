"""State heads in attention's place: what they start from, what is saved, who teaches them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.train.small_upgrade import checkpoint_of, recipe, train
from tests.train.test_stages import place  # noqa: F401  # the same Llama and documents
from wuneng.convert import ConvertedSources
from wuneng.model.branch_way import silenced
from wuneng.model.pretrained import load_whole_model
from wuneng.records import read_jsonl
from wuneng.train.plan import plan_run
from wuneng.train.replacing import begin_replacing, replaced_layers, without_attention

IDS = torch.arange(40)[None] + 60
MODEL = "model={num_state_heads: 4, decay_rank: 4, rate_rank: 4}"


@pytest.mark.parametrize(
    ("share", "layers", "expected"),
    [
        (0.5, range(4), (1, 3)),
        (0.25, range(4), (3,)),
        (1.0, range(3), (0, 1, 2)),
        (0.01, range(5), (4,)),
        (0.75, range(4), (0, 1, 3)),
        (0.5, [1, 3], (3,)),
    ],
)
def test_layers_are_spread_and_end_with_the_last(
    share: float, layers: range | list[int], expected: tuple[int, ...]
) -> None:
    assert replaced_layers(share, list(layers)) == expected


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:  # noqa: F811
    stages = "stages=[{align: {steps: 1}}, {distill: {steps: 1}}, tune]"
    arms = "arms={wuneng: {replace: 0.5}}"
    return train(place, place / "replaced", MODEL, arms, stages)[0].directory / "wuneng"


def test_what_is_saved_has_no_attention_there(place: Path, finished: Path) -> None:  # noqa: F811
    model = load_whole_model(finished / "model", dtype=torch.float32)
    assert [model.config.layer_kind(layer) for layer in (0, 1)] == ["hybrid", "state"]
    assert not any("layers.1.self_attn" in name for name, _ in model.named_parameters())
    stored = checkpoint_of(finished.parent, "wuneng", "model.safetensors")
    own = dict(model.named_parameters())
    for name, tensor in stored.items():
        assert ("layers.1.self_attn" in name) == (name not in own)
        if name in own:
            assert torch.equal(own[name], tensor)


def test_what_is_saved_says_what_was_scored(place: Path, finished: Path) -> None:  # noqa: F811
    again, _ = train(
        *(place, place / "scored", f"init_from={finished / 'model'}", "model={}"),
        *("arms={it: {train: none}}", "training.learning_rates={}"),
        sources=None,
    )
    trained = json.loads((finished / "result.json").read_text())["quality"]
    assert again.record["arms"]["it"]["quality"] == pytest.approx(trained, rel=1e-6)


def test_the_teacher_has_all_of_its_attention(place: Path, finished: Path) -> None:  # noqa: F811
    start = load_whole_model(finished / "start", dtype=torch.float32).eval()
    with torch.no_grad():
        expected = start(input_ids=IDS, use_cache=False).logits
        begin_replacing(start, (1,))
        replaced = start(input_ids=IDS, use_cache=False).logits
        with silenced(start):
            taught = start(input_ids=IDS, use_cache=False).logits
        saved = without_attention(start, (1,)).eval()(input_ids=IDS, use_cache=False).logits
    assert torch.equal(taught, expected)
    assert not torch.equal(replaced, expected)
    assert torch.equal(saved, replaced)


def test_heads_as_many_start_from_attentions_weights(finished: Path) -> None:
    start = load_whole_model(finished / "start", dtype=torch.float32)
    begin_replacing(start, (1,))
    of = {layer: dict(start.model.layers[layer].named_parameters()) for layer in (0, 1)}
    pairs = {"r_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj"}
    groups = start.config.num_attention_heads // start.config.num_key_value_heads
    assert groups > 1
    for ours, theirs in pairs.items():
        given = of[1][f"self_attn.{theirs}.weight"]
        if theirs != "q_proj":
            heads = given.unflatten(0, (-1, start.config.head_dim))
            given = torch.cat([h for head in heads for h in [head] * groups])
        assert torch.equal(of[1][f"state_heads.{ours}.weight"], given)
    assert torch.equal(of[1]["cross_head.branch_proj.weight"], of[1]["self_attn.o_proj.weight"])
    assert not of[0]["cross_head.branch_proj.weight"].any()


def test_every_layer_can_be_replaced(place: Path, tmp_path: Path) -> None:  # noqa: F811
    arms = "arms={wuneng: {replace: 1.0}}"
    results, _ = train(place, tmp_path / "run", MODEL, arms, "training.steps=2")
    model = load_whole_model(results.directory / "wuneng" / "model", dtype=torch.float32)
    assert model.config.num_attention_heads == 0
    ids = model.generate(IDS, max_new_tokens=3, do_sample=False)
    assert ids.shape == (1, 43)
    rows = read_jsonl(results.directory / "wuneng" / "metrics.jsonl")
    assert rows[-1]["loss"] > 0


def test_the_plan_knows_which_layers(place: Path, tmp_path: Path) -> None:  # noqa: F811
    arms = "arms={wuneng: {}, half: {replace: 0.5}}"
    plan = plan_run(recipe(place, MODEL, arms), ConvertedSources())
    assert [plan.arms[name].replaced for name in ("wuneng", "half")] == [(), (1,)]
