"""State heads in the place of some of attention's heads: what goes, what is saved, who teaches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.sources import save_source
from tests.train.small_upgrade import checkpoint_of, recipe, train
from tests.train.test_stages import place  # noqa: F401  # the same Llama and documents
from wuneng import WuNengConfig
from wuneng.convert import ConvertedSources
from wuneng.errors import RecipeError
from wuneng.model.branch_way import branch_ways, silenced
from wuneng.model.cache_bytes import cache_bytes
from wuneng.model.pretrained import load_whole_model
from wuneng.records import read_jsonl
from wuneng.train.plan import plan_run
from wuneng.train.replacing import begin_replacing, kept_heads, without_attention

IDS = torch.arange(40)[None] + 60
#: The Llama has 4 heads in 2 groups: half of the groups is 2 heads.
MODEL = "model={num_state_heads: 2, decay_rank: 4, rate_rank: 4}"
ARM = "arms={wuneng: {replace: 0.5, replace_of: heads}}"


@pytest.fixture(scope="module")
def finished(place: Path) -> Path:  # noqa: F811
    stages = "stages=[{align: {steps: 2}}, {distill: {steps: 1, ce: 0}}, tune]"
    return train(place, place / "heads", MODEL, ARM, stages)[0].directory / "wuneng"


def loaded(directory: Path) -> Any:
    return load_whole_model(directory, dtype=torch.float32).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


def test_what_is_saved_has_fewer_heads_and_a_smaller_cache(finished: Path) -> None:
    start, model = loaded(finished / "start"), loaded(finished / "model")
    for name in ("num_attention_heads", "num_key_value_heads"):
        assert getattr(model.config, name) * 2 == getattr(start.config, name)
    assert model.config.head_dim == start.config.head_dim
    width = model.config.num_attention_heads * model.config.head_dim
    attention = model.model.layers[0].self_attn
    assert attention.q_proj.weight.shape[0] == attention.o_proj.weight.shape[1] == width
    kept = cache_bytes(model.config, 1, 40, 4)["kv_bytes"] * 32 // 40
    assert json.loads((finished / "result.json").read_text())["cache_bytes"] == kept
    keys = [
        one(input_ids=IDS, use_cache=True).past_key_values.layers[0].keys.shape[1]
        for one in (start, model)
    ]
    assert keys[1] * 2 == keys[0]
    grows = [
        sum(cache_bytes(one.config, 1, 80, 4).values())
        - sum(cache_bytes(one.config, 1, 40, 4).values())
        for one in (start, model)
    ]
    assert grows[1] * 2 == grows[0]


def test_what_is_saved_says_what_was_scored(place: Path, finished: Path) -> None:  # noqa: F811
    again, _ = train(
        *(place, place / "heads-scored", f"init_from={finished / 'model'}", "model={}"),
        *("arms={it: {train: none}}", "training.learning_rates={}"),
        sources=None,
    )
    trained = json.loads((finished / "result.json").read_text())["quality"]
    assert again.record["arms"]["it"]["quality"] == pytest.approx(trained, rel=1e-5)


def test_weights_that_stay_are_leading_rows_and_columns(finished: Path) -> None:
    stored = checkpoint_of(finished.parent, "wuneng", "model.safetensors")
    own = dict(loaded(finished / "model").named_parameters())
    cut = 0
    for name, tensor in own.items():
        whole = stored[name]
        assert torch.equal(whole[tuple(slice(0, size) for size in tensor.shape)], tensor)
        cut += whole.shape != tensor.shape
    assert cut == 2 * 4


@torch.no_grad()
def test_the_teacher_has_all_of_its_heads(finished: Path) -> None:
    start = loaded(finished / "start").double()
    expected = logits(start)
    begin_replacing(start, (0, 1), 2)
    replaced = logits(start)
    with silenced(start):
        assert torch.equal(logits(start), expected)
    saved = without_attention(start, (0, 1), 2).eval()
    assert not torch.allclose(replaced, expected, atol=1e-3)
    torch.testing.assert_close(logits(saved), replaced, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_saved_logits_come_token_by_token_too(finished: Path) -> None:
    model = loaded(finished / "model").double()
    whole, cache = logits(model), None
    for t in range(IDS.shape[1]):
        out = model(input_ids=IDS[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(out.logits[:, 0], whole[:, t], rtol=1e-10, atol=1e-10)
    greedy = model.generate(IDS, max_new_tokens=4, do_sample=False)
    assert greedy.shape == (1, 44)
    assert greedy[0, 40] == whole[0, -1].argmax()


def test_a_saved_model_comes_back(finished: Path, tmp_path: Path) -> None:
    model = loaded(finished / "model")
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(loaded(tmp_path / "again")), logits(model))


def test_heads_as_many_start_from_the_weights_of_those_that_go(finished: Path) -> None:
    start = loaded(finished / "start")
    begin_replacing(start, (0, 1), 2)
    width = 2 * start.config.head_dim
    for block in start.model.layers:
        of = dict(block.named_parameters())
        assert torch.equal(of["state_heads.r_proj.weight"], of["self_attn.q_proj.weight"][width:])
        output = of["self_attn.o_proj.weight"][:, width:]
        assert torch.equal(of["cross_head.branch_proj.weight"], output)
        for letter in "kv":  # both heads that go share the second group's
            group = of[f"self_attn.{letter}_proj.weight"][start.config.head_dim :]
            assert torch.equal(of[f"state_heads.{letter}_proj.weight"], torch.cat([group, group]))


@torch.no_grad()
@pytest.mark.parametrize("whole_layer", [False, True])
def test_aligned_heads_are_asked_for_what_goes(finished: Path, whole_layer: bool) -> None:
    """A branch that says what the heads that go said leaves nothing to learn."""
    start, seen = loaded(finished / "start").double(), {}
    begin_replacing(start, (0, 1), 2)
    start.train()
    block = start.model.layers[0]
    width = 2 * start.config.head_dim

    def perfect(module: Any, inputs: Any, output: Any) -> Any:
        attended = output[0]
        return attended, attended[..., width:] @ block.self_attn.o_proj.weight[:, width:].T

    block.cross_head.register_forward_hook(perfect)
    for way in branch_ways(start).values():
        way.whole_layer = whole_layer
        way.watch = lambda layer, said, asked: seen.update({layer: (said, asked)})
    with_teacher = logits(start)
    with silenced(start):
        expected = logits(start)
    torch.testing.assert_close(with_teacher, expected, rtol=1e-10, atol=1e-10)
    said, asked = seen[0]
    torch.testing.assert_close(said, asked, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(*seen[1], atol=1e-3)


def test_aligning_starts_from_what_the_taken_weights_say(finished: Path) -> None:
    rows = read_jsonl(finished / "metrics.jsonl")
    assert [row["stage"] for row in rows[:3]] == ["align", "align", "distill"]
    assert rows[2]["kl"] > 1e-6  # heads have gone
    assert all(row["loss"] == row["loss"] for row in rows)


def test_the_plan_knows_which_heads(place: Path) -> None:  # noqa: F811
    arms = "arms={wuneng: {}, half: {replace: 0.5, replace_of: heads}, layers: {replace: 0.5}}"
    plan = plan_run(recipe(place, MODEL, arms), ConvertedSources())
    found = {name: (arm.replaced, arm.kept_heads) for name, arm in plan.arms.items()}
    assert found == {"wuneng": ((), 0), "half": ((0, 1), 2), "layers": ((1,), 0)}


def config(**changes: Any) -> WuNengConfig:
    sizes = {"num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 64}
    return WuNengConfig(**{**sizes, "cross_head": "none", "num_hidden_layers": 3, **changes})


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 4), (0.25, 6), (0.75, 2), (0.01, 6), (0.7, 2)]
)
def test_whole_groups_go(share: float, expected: int) -> None:
    assert kept_heads(share, config(), "here") == expected


@pytest.mark.parametrize(
    ("changes", "share", "message"),
    [
        ({}, 1.0, "here: heads: a share of 1.0 leaves none of 4 groups"),
        ({"num_key_value_heads": 1}, 0.5, "expected two groups of heads or more.*got 1"),
        ({"state_layers": [0, 2]}, 0.5, "layer 1 has no state heads"),
        ({"qk_norm": True, "qk_norm_over": "width"}, 0.5, "norm of queries and keys runs over all"),
        ({"attention_short_conv": 3}, 0.5, "short convolution"),
        ({"attention_output_gate": True}, 0.5, "output gate is one matrix"),
    ],
)
def test_what_cannot_be_without_some_heads_says_why(
    changes: dict[str, Any], share: float, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        kept_heads(share, config(**changes), "here")


def test_a_share_of_what_needs_a_share(place: Path) -> None:  # noqa: F811
    with pytest.raises(RecipeError, match=r"arms.wuneng.replace_of: needs replace"):
        recipe(place, "arms={wuneng: {replace_of: heads}}")


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_other_families_lose_heads_too(
    place: Path,  # noqa: F811
    tmp_path: Path,
    family: str,
) -> None:
    """Biases; norms of every query and key."""
    save_source(tmp_path / family, family, vocab_size=257)
    changes = (f"init_from={tmp_path / family}", MODEL, ARM, "training.steps=2")
    results, _ = train(place, tmp_path / "run", *changes)
    arm = results.directory / "wuneng"
    model = loaded(arm / "model")
    start = loaded(arm / "start")
    assert model.config.num_key_value_heads < start.config.num_key_value_heads
    again, _ = train(
        *(place, tmp_path / "scored", f"init_from={arm / 'model'}", "model={}"),
        *("arms={it: {train: none}}", "training.learning_rates={}"),
        sources=None,
    )
    trained = json.loads((arm / "result.json").read_text())["quality"]
    assert again.record["arms"]["it"]["quality"] == pytest.approx(trained, rel=1e-5)


def test_norms_over_all_heads_are_refused(place: Path, tmp_path: Path) -> None:  # noqa: F811
    save_source(tmp_path / "olmo2", "olmo2", vocab_size=257)
    with pytest.raises(RecipeError, match=r"arms\.wuneng\.replace_of: heads: the norm of queries"):
        plan_run(recipe(place, f"init_from={tmp_path / 'olmo2'}", MODEL, ARM), ConvertedSources())
