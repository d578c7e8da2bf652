"""What a model starts with, by the fields that say so."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.small import VARIANTS
from wuneng import WuNengConfig, WuNengForCausalLM

SIZES = {"vocab_size": 61, "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
OUTPUTS = ("o_proj.weight", "branch_proj.weight", "down_proj.weight")


def drawn(**fields: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = WuNengForCausalLM(WuNengConfig(**(SIZES | fields)))
    return {name: p.detach() for name, p in model.named_parameters()}


def outputs(parameters: dict[str, torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    return {end: [p for n, p in parameters.items() if n.endswith(end)] for end in OUTPUTS}


@pytest.mark.parametrize("width", [64, 128, 768, 3072])
def test_the_range_follows_the_width(width: int) -> None:
    config = WuNengConfig(hidden_size=width)
    assert config.initializer_range == pytest.approx(0.02 * math.sqrt(768 / width), rel=1e-12)
    assert config.initializer_range * math.sqrt(width) == pytest.approx(0.554, abs=1e-3)
    assert WuNengConfig(hidden_size=width, initializer_range=0.3).initializer_range == 0.3
    assert WuNengConfig(hidden_size=768).initializer_range == 0.02


def test_weights_have_the_range() -> None:
    for fields, std in (({}, 0.02 * math.sqrt(8)), ({"initializer_range": 0.1}, 0.1)):
        found = drawn(**fields)
        for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"):
            assert found[name].std().item() == pytest.approx(std, rel=0.05), name


@pytest.mark.parametrize("how", ["zero", "small", "normal"])
@pytest.mark.parametrize("ffn", ["swiglu", "mlp"])
def test_output_projections_start_as_they_are_told(how: str, ffn: str) -> None:
    std = 0.02 * math.sqrt(8) * {"zero": 0.0, "small": 0.5, "normal": 1.0}[how]  # L is 2
    for end, found in outputs(drawn(output_init=how, ffn=ffn)).items():
        assert len(found) == 2
        for weight in found:
            assert weight.std().item() == pytest.approx(std, rel=0.05), end


def test_the_branch_may_start_otherwise() -> None:
    found = outputs(drawn(output_init="zero", state_branch_init="normal"))
    assert all(not p.any() for end in ("o_proj.weight", "down_proj.weight") for p in found[end])
    assert all(p.std() > 0.05 for p in found["branch_proj.weight"])
    other = outputs(drawn(output_init="normal", state_branch_init="zero"))
    assert all(p.std() > 0.05 for end in ("o_proj.weight", "down_proj.weight") for p in other[end])
    assert not any(p.any() for p in other["branch_proj.weight"])


def test_rwkv7s_feed_forward_keeps_its_own_start() -> None:
    for how in ("zero", "normal"):
        found = drawn(ffn="rwkv7", output_init=how)
        assert not found["model.layers.0.mlp.value.weight"].any()


def test_state_heads_spread_evenly() -> None:
    found = drawn(num_state_heads=4, state_key_source="own", state_output_gate=True)
    heads = "model.layers.1.state_heads."
    torch.testing.assert_close(found[heads + "w0"], torch.linspace(-5, 1, 96), rtol=0, atol=1e-5)
    assert not found[heads + "a0"].any()
    for letter in "wa":
        assert found[f"{heads}{letter}1"].abs().max() <= 96**-0.5
        assert found[f"{heads}{letter}1"].std().item() == pytest.approx((3 * 96) ** -0.5, rel=0.05)
        assert not found[f"{heads}{letter}2"].any()
    assert found[heads + "r_proj.weight"].abs().max() <= 96**-0.5
    assert torch.all(found[heads + "g_norm.weight"] == 1)


def test_an_output_gate_starts_open() -> None:
    """Near 1, and not the same for all ranks, which would then learn the same."""
    gated = {"num_state_heads": 4, "state_output_gate": True, "state_gate_sigmoid": "hidden"}
    found = drawn(**gated)
    down, up = (found[f"model.layers.1.state_heads.g{i}"] for i in (1, 2))
    gate = torch.sigmoid(torch.randn(2000, 96) @ down) @ up
    torch.testing.assert_close(gate.mean(0), torch.ones(96), rtol=0, atol=0.3)
    assert 0 < gate.std(0).max() < 0.3
    assert down.std(1).min() > 0.01
    assert up.std(0).min() > 0.001
    published = drawn(**gated, state_init="published")
    assert not published["model.layers.1.state_heads.g1"].any()
    assert published["model.layers.1.state_heads.g2"].abs().max() < 0.3


def test_published_values_depend_on_the_layer() -> None:
    found = drawn(state_init="published")
    weights = [found[f"model.layers.{i}.state_heads.g_norm.weight"].unique() for i in (0, 1)]
    torch.testing.assert_close(torch.cat(weights), torch.tensor([0.5**0.7, 1.0]))
    assert not found["model.layers.0.state_heads.w1"].any()
    assert found["model.layers.0.state_heads.w2"].any()


@pytest.mark.parametrize("kind", ["gated_delta", "kda"])
def test_other_kinds_have_their_papers_values(kind: str) -> None:
    config = WuNengConfig(**SIZES, state_kind=kind)
    assert config.state_init == "published"
    with pytest.raises(ValueError, match=r"state_init must be published where state_kind is"):
        WuNengConfig(**SIZES, state_kind=kind, state_init="even")
    assert WuNengConfig(**SIZES).changed({"state_kind": kind}).state_init == "published"


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_parameter_is_dead_for_long(variant: str) -> None:
    """From zero outputs only these learn in the first step; two more, and everything does."""
    small = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 61, "snapshot_every": 16}
    torch.manual_seed(0)
    fields = {"num_hidden_layers": 2, "num_attention_heads": 4} | VARIANTS[variant] | small
    model = WuNengForCausalLM(WuNengConfig(**fields))
    ids = torch.randint(0, 61, (2, 40))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(4):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        grads = {n: p.grad for n, p in model.named_parameters()}
        optimizer.step()
    assert not [n for n, g in grads.items() if g is None or not g.any()]
