"""Layers of other families in models of our own: what is refused, how they start and count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.small import BASE, in_pieces, plainly, small_model
from tests.precision import assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.layers.embedding import ScaledEmbedding
from wuneng.layers.norms import PlusOneRMSNorm
from wuneng.model.counting import forward_flops_per_token, parameters_by_part, total_parameters
from wuneng.model.parameter_groups import groups_of

EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "moe_layers": [1],
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residual_multiplier": 0.0}, "residual_multiplier must be above 0, got 0.0"),
        ({"logit_softcap": -1.0}, "logit_softcap must be above 0"),
        ({"norm": "rms"}, "norm must be one of rmsnorm, rmsnorm_wide, rmsnorm_plus_one"),
        ({"norm_placement": "after"}, "norm_placement must be one of pre, post, both"),
        ({"qk_norm_over": "heads"}, "qk_norm_over must be one of head, width"),
        ({"rope_layers": [2]}, "rope_layers must lie in 0..1"),
        ({"sliding_rope_parameters": {"rope_type": "default"}}, "needs sliding_window"),
        (
            {"sliding_window": 4, "sliding_rope_parameters": {"rope_theta": 1.0}},
            "sliding_rope_parameters must state rope_type",
        ),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 1.5}},
            "partial_rotary_factor must lie above 0 and up to 1, got 1.5",
        ),
        ({"moe_layers": [0]}, "moe_layers needs num_experts"),
        ({"num_experts": 4}, "num_experts needs moe_intermediate_size"),
        (EXPERTS | {"num_experts_per_tok": 5}, r"must be at most num_experts \(4\), got 5"),
        (EXPERTS | {"ffn": "mlp"}, "num_experts goes with ffn 'swiglu'"),
    ],
)
def test_what_contradicts_itself_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WuNengConfig(**(BASE | changes))


def test_norms_of_one_plus_the_weight_start_at_one() -> None:
    model = WuNengForCausalLM(WuNengConfig(**BASE, norm="rmsnorm_plus_one", norm_placement="both"))
    norms = [m for m in model.modules() if isinstance(m, PlusOneRMSNorm)]
    assert len(norms) == 2 * 4 + 1
    assert not any(norm.weight.any() for norm in norms)
    x = torch.randn(3, 32)
    assert torch.allclose(norms[0](x).pow(2).mean(-1), torch.ones(3), atol=1e-3)


def test_more_token_ids_keep_the_scale_of_embeddings() -> None:
    model = small_model("four-norms-soft-caps")
    ids = torch.arange(7)[None]
    with torch.no_grad():
        before = model(ids).logits
        model.resize_token_embeddings(70, mean_resizing=False)
        assert isinstance(model.model.embed_tokens, ScaledEmbedding)
        assert torch.equal(model(ids).logits[..., :61], before)


def test_experts_are_counted_once_and_computed_as_often_as_chosen() -> None:
    dense, mixed = WuNengConfig(**BASE), WuNengConfig(**BASE, **EXPERTS)
    model = WuNengForCausalLM(mixed)
    assert total_parameters(mixed) == sum(p.numel() for p in model.parameters())
    D, F, E, K = 32, 16, 4, 2
    more = E * 3 * D * F + E * D - 3 * D * 48
    one, other = (parameters_by_part(config)["feed-forward"] for config in (dense, mixed))
    assert other - one == more
    flops = forward_flops_per_token(mixed, 8) - forward_flops_per_token(dense, 8)
    assert flops == 2 * (K * 3 * D * F + E * D - 3 * D * 48)
    groups = groups_of(model)
    decayed = {name for name, group in groups.items() if "layers.1.mlp" in name}
    assert {groups[name] for name in decayed} == {"decay"}


def test_experts_and_their_router_start_as_other_matrices() -> None:
    config = WuNengConfig(**(BASE | EXPERTS | {"hidden_size": 64}))
    mlp = WuNengForCausalLM(config).model.layers[1].mlp
    for matrix in (mlp.experts.gate_up_proj, mlp.experts.down_proj, mlp.gate.weight):
        assert matrix.std().item() == pytest.approx(0.02 * (768 / 64) ** 0.5, rel=0.2)


def test_experts_learn_and_give_the_same_token_by_token() -> None:
    model = small_model(**EXPERTS, experts_implementation="eager")  # the usual one has no float64
    ids = torch.arange(12).view(2, 6) * 5 % 61
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[1].mlp.experts.down_proj.grad.any()
    assert model.model.layers[1].mlp.gate.weight.grad.any()
    with torch.no_grad():
        expected = plainly(model, lambda m: m(ids).logits)
        assert_as_exact(in_pieces(model, ids, [1] * 6), *expected)
