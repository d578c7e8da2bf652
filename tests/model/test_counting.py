"""Counts agree with the model that is built, and a matched baseline costs what it should."""

import pytest
import torch
from torch import nn

from tests.model.small import BASE, VARIANTS
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.model import counting
from wuneng.model import skeleton as skeleton_module
from wuneng.model.matching import kept_bytes, match
from wuneng.model.parameter_groups import groups_of
from wuneng.model.skeleton import Skeleton, layout

YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "original_max_position_embeddings": 1024,
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_add_up(variant):
    config = WuNengConfig(**(BASE | VARIANTS[variant]))
    parts = counting.parameters_by_part(config)
    assert sum(parts.values()) == WuNengForCausalLM(config).num_parameters()
    assert (parts["state heads"] > 0) == (config.num_state_heads > 0)
    assert (parts["middle heads"] > 0) == (config.cross_head != "none")


@pytest.mark.parametrize(
    "extra", [{}, {"tie_word_embeddings": False, "pad_token_id": 0}, {"rope_parameters": YARN}]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_skeleton_is_the_model_without_values(variant, extra):
    config = WuNengConfig(**(BASE | VARIANTS[variant] | extra))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    skeleton = Skeleton(config)
    assert torch.equal(torch.get_rng_state(), before)
    model = WuNengForCausalLM(config)
    for contents in ("named_parameters", "named_buffers"):
        found, expected = (
            {name: t.shape for name, t in getattr(m, contents)()} for m in (skeleton, model)
        )
        assert list(found) == list(expected)
        assert found == expected
    assert all(p.is_meta for p in skeleton.parameters())
    linear = [
        [n for n, m in x.named_modules() if isinstance(m, nn.Linear)] for x in (skeleton, model)
    ]
    assert linear[0] == linear[1]
    tied = skeleton.lm_head.weight is skeleton.model.embed_tokens.weight
    assert tied == config.tie_word_embeddings


def test_added_share_is_what_the_plain_model_lacks():
    hybrid, plain = (WuNengConfig(**(BASE | {"num_state_heads": s})) for s in (2, 0))
    parts = counting.parameters_by_part(hybrid)
    total, base = counting.total_parameters(hybrid), counting.total_parameters(plain)
    assert counting.added_percent(parts) == pytest.approx(100 * (total - base) / base)


@pytest.mark.parametrize("kind", ["parameters", "flops"])
@pytest.mark.parametrize("ffn", ["swiglu", "mlp", "rwkv7"])
def test_match_within_one_per_cent(kind, ffn):
    reference = WuNengConfig(**(BASE | {"hidden_size": 64, "ffn": ffn}))
    plain = WuNengConfig(**(BASE | {"hidden_size": 64, "ffn": ffn, "num_state_heads": 0}))
    matched = match(plain, reference, kind, sequence_length=128)

    def cost(config):
        if kind == "parameters":
            return WuNengForCausalLM(config).num_parameters()
        return counting.training_flops_per_token(config, 128)

    assert abs(cost(matched) / cost(reference) - 1) <= 0.01
    assert matched.intermediate_size > plain.intermediate_size
    assert plain.intermediate_size == 48


def test_match_width_changes_nothing_and_impossible_is_said():
    reference = WuNengConfig(**BASE)
    assert match(reference, reference, "width") is reference
    huge = WuNengConfig(**(BASE | {"vocab_size": 50000, "num_state_heads": 0}))
    with pytest.raises(ValueError, match="no feed-forward width makes this arm match"):
        match(huge, reference, "parameters")


def test_match_of_what_is_kept_grows_attention_heads():
    reference = WuNengConfig(**(BASE | {"hidden_size": 64, "intermediate_size": 128}))
    plain = WuNengConfig(
        **(BASE | {"hidden_size": 64, "intermediate_size": 128, "num_state_heads": 0})
    )
    matched = match(plain, reference, "state_bytes", sequence_length=40)

    def kept(config):
        model = WuNengForCausalLM(config).eval()
        with torch.no_grad():
            cache = model(torch.zeros(1, 40, dtype=torch.long), use_cache=True).past_key_values
        return cache.key_value_bytes() + cache.state_bytes()

    assert kept(plain) < 0.95 * kept(reference)
    assert kept(matched) == kept_bytes(matched, 40)
    assert abs(kept(matched) / kept(reference) - 1) <= 0.05
    assert matched.head_dim % 2 == 0
    assert plain.head_dim < matched.head_dim
    total, own = counting.total_parameters(matched), counting.total_parameters(reference)
    assert abs(total / own - 1) <= 0.01
    assert match(reference, reference, "state_bytes", 40).head_dim == reference.head_dim


def test_what_keeps_no_keys_cannot_be_matched_by_them():
    reference = WuNengConfig(**BASE)
    pure = WuNengConfig(
        **BASE
        | {
            "num_attention_heads": 0,
            "num_state_heads": 2,
            "cross_head": "none",
            "state_key_source": "own",
            "state_value_source": "own",
        }
    )
    with pytest.raises(
        ValueError, match="match: state_bytes changes the size of attention's heads"
    ):
        match(pure, reference, "state_bytes", 64)


def test_flops_of_a_plain_model_by_hand():
    config = WuNengConfig(**(BASE | {"num_state_heads": 0}))
    per_layer = 4 * 32 * 32 + 3 * 32 * 48
    weights = 2 * per_layer + 61 * 32
    attention = 2 * 4 * 4 * 8 * (100 + 1) / 2
    expected = 2 * weights + attention
    assert counting.forward_flops_per_token(config, 100) == pytest.approx(expected)
    assert counting.training_flops_per_token(config, 100) == pytest.approx(3 * expected)


def test_parameter_groups():
    model = WuNengForCausalLM(WuNengConfig(**BASE, snapshots=1))
    groups = groups_of(model)
    layer = "model.layers.0."
    assert groups[layer + "state_heads.w0"] == "double_lr"
    for name in ("self_attn.q_proj.weight", "cross_head.gate_weight", "mlp.up_proj.weight"):
        assert groups[layer + name] == "decay"
    for name in (
        "state_heads.k_k",
        "state_heads.r_k",
        "state_heads.w1",
        "state_heads.g_norm.weight",
        "state_heads.shift_r",
        "cross_head.group_norm.weight",
        "cross_head.gate_bias",
        "input_layernorm.weight",
    ):
        assert groups[layer + name] == "no_decay", name


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"tie_word_embeddings": False, "qk_norm": True},
        {"state_value_residual": True, "state_layers": [1, 3]},
        {"state_value_residual": True, "state_layers": [0, 2, 6], "embedding_norm": True},
        {"num_state_heads": 0, "attention_bias": True},
    ],
)
def test_the_layout_names_what_the_skeleton_holds(extra):
    config = WuNengConfig(**(BASE | {"num_hidden_layers": 7} | extra))
    skeleton, built = Skeleton(config), layout(config)
    shapes = [(name, p.shape) for name, p in skeleton.named_parameters()]
    assert list(built.parameters.items()) == shapes
    linears = {n: m for n, m in skeleton.named_modules() if isinstance(m, nn.Linear)}
    assert built.linears == {n: (m.in_features, m.out_features) for n, m in linears.items()}


def test_a_thousand_layers_build_three(monkeypatch):
    config = WuNengConfig(
        **(BASE | {"num_hidden_layers": 1024, "state_layers": [*range(0, 1024, 2)]})
    )
    built = []
    make = skeleton_module._Block.add_parts
    monkeypatch.setattr(
        skeleton_module._Block, "add_parts", lambda *args: built.append(args[2]) or make(*args)
    )
    assert counting.total_parameters(config) > 1024 * config.hidden_size**2
    assert built == [0, 1, 2]


def test_rotary_settings_that_cannot_be_computed_are_named():
    config = WuNengConfig(**BASE)
    config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": "four"}
    with pytest.raises(ValueError, match="rope_type linear cannot be computed"):
        layout(config)
