"""State heads of the delta-rule kinds: their equations, and whatever a kind has to fit into."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.layers.delta_reference import layer_reference
from tests.model.small import BASE as SMALL
from tests.model.small import disturbed, plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.kinds import load_kind
from wuneng.layers.layout import SequenceLayout
from wuneng.model import counting
from wuneng.model.initialisation import initialise
from wuneng.model.parameter_groups import groups_of
from wuneng.ops import using

#: The gate is each kind's own.
BASE = SMALL | {"state_output_gate": None}

KINDS = ("gated_delta", "kda")
#: As they are published, and as WuNeng's own heads mix tokens.
WIRINGS: dict[str, dict[str, Any]] = {
    "conv": {"token_shift": "none", "state_short_conv": 4},
    "shift": {},
    "neither, beta to 2": {"token_shift": "none", "state_a_max": 2.0},
}
OF_THE_DECAY = ("A_log", "dt_bias", "a_proj.weight", "f_down.weight", "f_up.weight")
#: Units in the last place for their gradients: sums over all tokens and channels of what is, in
#: chunks, a difference of sums each. That the algebra is right, float64 shows to ten digits.
SUMMED_FLOOR = 640.0
OWN = {"state_key_source": "own", "state_value_source": "own"}


def model_of(kind: str, **changes: Any) -> WuNengForCausalLM:
    torch.manual_seed(0)
    model = WuNengForCausalLM(WuNengConfig(**(BASE | {"state_kind": kind} | changes))).eval()
    return disturbed(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_layer_is_its_equations(kind: str, wiring: str) -> None:
    """Values and every gradient, against a loop over tokens and heads in float64."""
    config = WuNengConfig(**(BASE | OWN | WIRINGS[wiring] | {"state_kind": kind}))
    torch.manual_seed(1)
    layer = load_kind("state", kind)(config, 0)
    with torch.no_grad():
        for module in reversed(list(layer.modules())):
            initialise(module, config)
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    x = torch.randn(2, 37, 32)

    def run(dtype: torch.dtype, how: Any) -> dict[str, torch.Tensor]:
        made = layer.to(dtype)
        leaf = x.to(dtype).requires_grad_()
        out = how(made, leaf)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        leaves = {"x": leaf, **dict(made.named_parameters())}
        grads = torch.autograd.grad((out * weight).sum(), list(leaves.values()))
        named = {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
        return {name: t.detach().clone() for name, t in {"R": out, **named}.items()}

    def ours(made: Any, leaf: torch.Tensor) -> torch.Tensor:
        return made(leaf, None, None, SequenceLayout.dense(2, 37))[0]

    def by_hand(made: Any, leaf: torch.Tensor) -> torch.Tensor:
        return layer_reference(made, leaf, kind)

    found = run(torch.float32, ours)
    with using("reference"):
        reference = run(torch.float32, ours)
    exact = run(torch.float64, by_hand)
    double = run(torch.float64, ours)
    for name, value in exact.items():
        torch.testing.assert_close(double[name], value, rtol=1e-9, atol=1e-10, msg=name)
    summed = {f"d {name}" for name in OF_THE_DECAY} & set(exact)
    for names, floor in ((summed, SUMMED_FLOOR), (set(exact) - summed, CHUNKED_FLOOR)):
        parts = ({name: side[name] for name in names} for side in (found, reference, exact))
        assert_as_exact(*parts, floor=floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        WIRINGS["conv"] | {"snapshots": 2},
        OWN | WIRINGS["conv"] | {"num_key_value_heads": 1},
        {"layers": {"pattern": ["state", "attention"]}} | WIRINGS["conv"],
        {"num_attention_heads": 0, "state_head_dim": 16} | OWN,
    ],
    ids=["default", "snapshots", "own", "interleaved", "alone"],
)
def test_decoding_documents_and_pads(kind: str, changes: dict[str, Any]) -> None:
    model = model_of(kind, **changes)
    ids = torch.randint(0, 61, (2, 41), generator=torch.Generator().manual_seed(3))

    def whole(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model(ids).logits

    def pieces(model: Any) -> torch.Tensor:
        cache, parts = None, []
        with torch.no_grad():
            for part in ids.split([30, 1, 1, 1, 8], dim=1):
                out = model(part, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                parts.append(out.logits)
        return torch.cat(parts, 1)

    reference, exact = plainly(model, whole)
    for found in (whole(model), pieces(model)):
        assert_as_exact(found, reference, exact, floor=CHUNKED_FLOOR)
    documents = torch.tensor([[0] * 17 + [1] * 24] * 2)
    mask = torch.ones(2, 41, dtype=torch.long)
    mask[0, :9] = 0
    double = model.double()
    with torch.no_grad():
        packed = double(ids, document_ids=documents).logits
        apart = torch.cat([double(ids[:, :17]).logits, double(ids[:, 17:]).logits], 1)
        padded = double(ids, attention_mask=mask).logits[0, 9:]
        alone = double(ids[:1, 9:]).logits[0]
    torch.testing.assert_close(packed, apart, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(padded, alone, rtol=1e-5, atol=1e-5)  # RoPE is float32


@pytest.mark.parametrize("kind", KINDS)
def test_generation_and_beams(kind: str) -> None:
    model = model_of(kind, **WIRINGS["conv"])
    ids = torch.arange(12)[None].repeat(2, 1)
    greedy = model.generate(ids, max_new_tokens=5, do_sample=False)
    again = ids
    for _ in range(5):
        with torch.no_grad():
            again = torch.cat([again, model(again, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert greedy.tolist() == again.tolist()
    how = {"max_new_tokens": 5, "do_sample": False, "num_beams": 3}
    assert (
        model.generate(ids, **how).tolist() == model.generate(ids, use_cache=False, **how).tolist()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_counted_and_optimised(kind: str) -> None:
    config = WuNengConfig(**(BASE | {"state_kind": kind} | WIRINGS["conv"]))
    model = WuNengForCausalLM(config)
    assert counting.total_parameters(config) == sum(p.numel() for p in model.parameters())
    per_token = counting.forward_flops_per_token(config, 100)
    weights = sum(
        p.numel()
        for name, p in model.named_parameters()
        if p.dim() == 2 and "norm" not in name and name.rpartition(".")[2] == "weight"
    )
    gates = sum(p.numel() for n, p in model.named_parameters() if n.endswith("gate_weight"))
    attention = 2 * 4 * 4 * 8 * (100 + 1) / 2
    state = 2 * 2 * 8 * 8**2
    assert per_token == pytest.approx(2 * (weights + gates) + attention + state)
    groups = groups_of(model)
    heads = "model.layers.0.state_heads."
    for name in ("A_log", "dt_bias", "r_conv.weight", "o_norm.weight"):
        assert groups[heads + name] == "no_decay", name
    assert groups[heads + "r_proj.weight"] == groups[heads + "b_proj.weight"] == "decay"


@pytest.mark.parametrize("kind", KINDS)
def test_a_zero_branch_is_silent_and_learns(kind: str) -> None:
    with_state = model_of(kind, state_branch_init="zero")
    with torch.no_grad():
        for name, parameter in with_state.named_parameters():
            if "branch_proj" in name:
                parameter.zero_()
    plain = WuNengForCausalLM(WuNengConfig(**(BASE | {"num_state_heads": 0}))).eval()
    plain.load_state_dict(with_state.state_dict(), strict=False)
    ids = torch.arange(40)[None] % 61
    with torch.no_grad():
        assert torch.equal(with_state(ids).logits, plain(ids).logits)
    with_state.train()
    with_state(ids, labels=ids).loss.backward()
    assert with_state.model.layers[0].cross_head.branch_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind: str) -> None:
    model = model_of(kind, **WIRINGS["conv"]).bfloat16()
    ids = torch.arange(40)[None] % 61
    with torch.no_grad():
        logits = model(ids).logits
        exact = model.double()(ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().max() / exact.abs().max() < 0.05


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_shift": "pre"}, r"token_shift must be post or none where state_kind is"),
        ({"state_value_residual": True}, r"state_value_residual must be False where state_kind"),
        ({"state_removal_key": "own"}, r"state_removal_key must be 'shared' where state_kind"),
        ({"state_options": {"x": 1}}, r"state_options: .* has no setting 'x'; it takes none"),
    ],
)
def test_what_a_kind_has_not_is_refused(kind: str, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WuNengConfig(**(BASE | {"state_kind": kind} | changes))


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match=r"state_kind must be one of .*gated_delta.*got 'gated'"):
        WuNengConfig(**(BASE | {"state_kind": "gated"}))
