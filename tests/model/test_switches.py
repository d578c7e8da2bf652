"""Every switch builds, runs, trains all its parameters, and changes the function."""

import pytest
import torch

from tests.model.small import BASE, VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_reach_every_parameter(variant):
    model = small_model(variant).train()
    ids = torch.randint(0, 61, (2, 37))
    model(ids, labels=ids, use_cache=False).loss.backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    ]
    assert without == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_causal(variant):
    model = small_model(variant)
    ids = torch.randint(0, 61, (1, 40))
    changed = ids.clone()
    changed[0, 25:] = (changed[0, 25:] + 1) % 61
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
        prefix = plainly(model, lambda m: m(ids[:, :25]).logits)
    for logits in (before, after):
        assert_as_exact(logits[:, :25], *prefix, floor=CHUNKED_FLOOR)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-3)


def test_switches_change_the_function():
    """No switch is decoration: on the same weights, where names agree, the logits differ."""
    ids = torch.randint(0, 61, (1, 40))
    default = small_model()
    with torch.no_grad():
        expected = default(ids).logits
    for variant, overrides in VARIANTS.items():
        if not overrides or variant in ("mlp-bias",):
            continue
        other = WuNengForCausalLM(WuNengConfig(**(BASE | overrides))).eval()
        state = default.state_dict()
        own = {k: v for k, v in state.items() if other.state_dict().get(k, v[:0]).shape == v.shape}
        other.load_state_dict(own, strict=False)
        with torch.no_grad():
            assert not torch.allclose(other(ids).logits, expected, atol=1e-5), variant


def test_zero_branch_leaves_attention_alone():
    torch.manual_seed(0)
    for kind in ("gated", "concat", "additive", "none"):
        fields = {"cross_head": kind, "state_branch_init": "zero", "snapshots": 1}
        config = WuNengConfig(**(BASE | fields))
        model = WuNengForCausalLM(config).eval()
        plain = WuNengForCausalLM(WuNengConfig(**(BASE | {"num_state_heads": 0}))).eval()
        plain.load_state_dict(
            {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
        )
        ids = torch.randint(0, 61, (2, 33))
        with torch.no_grad():
            assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_head": "blend"}, "cross_head must be one of additive, concat, gated, none"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide"),
        ({"num_attention_heads": 0, "num_state_heads": 0}, "not both 0"),
        ({"num_attention_heads": 0, "head_dim": 8}, "must be 'own'"),
        ({"state_head_dim": 12}, "needs state_head_dim equal to head_dim"),
        ({"num_state_heads": 3}, "groups heads evenly"),
        ({"token_shift_on": "rq"}, "letters of 'rkv'"),
        ({"state_a_max": 3.0}, "state_a_max"),
        ({"snapshot_every": 24}, "multiple of 16"),
        ({"state_layers": [2]}, "state_layers must lie in 0..1"),
    ],
)
def test_contradictions_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        WuNengConfig(**(BASE | fields))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_implementations_agree(implementation):
    model = small_model("sliding-second-layer")
    ids = torch.randint(0, 61, (2, 24))
    documents = torch.tensor([[0] * 9 + [1] * 15, [0] * 24])
    with torch.no_grad():
        sides = plainly(model, lambda m: m(ids, document_ids=documents, use_cache=False).logits)
        model.set_attn_implementation(implementation)
        got = model(ids, document_ids=documents, use_cache=False).logits
    assert_as_exact(got, *sides, floor=CHUNKED_FLOOR)


def test_activation_checkpointing_gives_the_same_gradients():
    ids = torch.randint(0, 61, (2, 33))
    gradients = []
    for checkpointing in (False, True):
        model = small_model("gate-and-value-residual").train()
        if checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.equal(plain, checkpointed)


def test_hidden_states_and_attentions_are_recorded():
    model = small_model()
    model.set_attn_implementation("eager")
    ids = torch.randint(0, 61, (2, 12))
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3
    assert out.hidden_states[0].shape == (2, 12, 32)
    assert [a.shape for a in out.attentions] == [(2, 4, 12, 12)] * 2
