"""Neighbouring tokens mixed by shift and convolution, for every kind and every sort of layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.model.small import BASE as SMALL
from tests.model.small import disturbed, in_pieces
from wuneng import WuNengConfig, WuNengForCausalLM
from wuneng.built_in_arms import BUILT_IN_ARMS, arm_problem
from wuneng.convert.graft import NewTensors
from wuneng.layers.middle.gated import Gated
from wuneng.model.initialisation import initialise
from wuneng.train.verdicts import pick_arms

#: The gate is each kind's own.
BASE = SMALL | {"state_output_gate": None}

KINDS = ("rwkv7", "gated_delta", "kda")
CONV = {"token_shift": "none", "state_short_conv": 4}
INTERLEAVED = {"layers": ["state", "attention"]}
WIRINGS: dict[str, dict[str, Any]] = {
    "conv": CONV,
    "both": {"state_short_conv": 3},
    "interleaved": INTERLEAVED | CONV,
    "interleaved, shifted": INTERLEAVED,
    "mixed layers": {"layers": ["hybrid", "state"], "state_short_conv": 2},
    "attention's own": {"num_state_heads": 0, "attention_short_conv": 4},
}


def model_of(**changes: Any) -> WuNengForCausalLM:
    torch.manual_seed(0)
    return disturbed(WuNengForCausalLM(WuNengConfig(**(BASE | changes))).double().eval())


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_has_a_say(kind: str, wiring: str) -> None:
    model = model_of(**({"state_kind": kind} | WIRINGS[wiring]))
    ids = torch.randint(0, 61, (2, 20))
    model(ids, labels=ids).loss.backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not silent


def test_a_pre_shift_of_a_layer_without_attention_shifts_its_own_value() -> None:
    model = model_of(layers=["state", "attention"], token_shift="pre")
    ids = torch.randint(0, 61, (2, 20))
    model(ids, labels=ids).loss.backward()
    assert model.model.layers[0].state_heads.x_v.grad.abs().sum() > 0


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_pieces_pads_and_nothing_but_pads(kind: str, wiring: str) -> None:
    """The first piece of the second row is pads alone."""
    model = model_of(**({"state_kind": kind} | WIRINGS[wiring]))
    ids = torch.randint(0, 61, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[1, :7] = 0
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        alone = model(ids[1:, 7:]).logits[0]
    pieces = in_pieces(model, ids, [5, 1, 1, 1, 12], mask)
    torch.testing.assert_close(pieces[0], whole[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces[1, 7:], whole[1, 7:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(pieces[1, 7:], alone, rtol=1e-5, atol=1e-5)  # RoPE is float32


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_call_of_pads_alone(wiring: str) -> None:
    model = model_of(**({"state_kind": "kda"} | WIRINGS[wiring]))
    ids, mask = torch.randint(0, 61, (1, 12)), torch.ones(1, 12, dtype=torch.long)
    mask[0, :4] = 0
    with torch.no_grad():
        out = model(ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
        rest = model(ids[:, 4:], attention_mask=mask, past_key_values=out.past_key_values)
        alone = model(ids[:, 4:]).logits
    torch.testing.assert_close(rest.logits, alone, rtol=1e-5, atol=1e-5)


def test_a_mask_of_pairs_is_refused_where_tokens_are_convolved() -> None:
    model = model_of(num_state_heads=0, attention_short_conv=4)
    pairs = torch.ones(1, 1, 8, 8, dtype=torch.bool).tril()
    with pytest.raises(ValueError, match="cannot follow a mask of pairs"):
        model(torch.arange(8)[None], attention_mask=pairs)


def test_a_formula_of_ones_own_is_not_the_operators() -> None:
    class Silent(Gated):
        def formula(self, A: Any, grouped: Any, R: Any) -> Any:
            return A, 0 * R

    class Renamed(Gated):
        pass

    class Halved(Gated):
        def forward(self, attention: Any, state: Any) -> Any:
            return super().forward(attention, state / 2)

    assert (Silent.operator, Renamed.operator, Halved.operator) == (None, "gated", None)
    assert not Halved(WuNengConfig(**BASE)).can_be_read()
    layer = Silent(WuNengConfig(**BASE))
    initialise(layer, WuNengConfig(**BASE))
    with torch.no_grad():
        _, branch = layer.interaction(torch.randn(1, 3, 32), torch.randn(1, 3, 2, 8))
    assert branch[..., 16:].abs().max() == 0


@pytest.mark.parametrize("kind", ["gated_delta", "kda"])
def test_grafted_heads_start_as_those_from_scratch(kind: str) -> None:
    wide = {"hidden_size": 128, "head_dim": 16, "num_hidden_layers": 1, "state_branch_init": "zero"}
    config = WuNengConfig(**(BASE | wide | {"state_kind": kind}))
    torch.manual_seed(0)
    scratch = dict(WuNengForCausalLM(config).named_parameters())
    for name, grafted in NewTensors(config, torch.float32, 0).layer(0).items():
        wanted, found = scratch[name].std(), grafted.std()
        if grafted.numel() > 300:
            torch.testing.assert_close(found, wanted, rtol=0.2, atol=1e-6, msg=name)
        if name.endswith("g_up.bias"):
            assert not grafted.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_bonus": False}, "state_bonus must be True where state_kind is kda"),
        ({"state_norm_eps": 1.0}, "state_norm_eps must be 0.00064 where state_kind is kda"),
        ({"state_options": {1: 2, "a": 3}}, "kda has no setting '1'"),
        ({"layers": ["hybrid"]}, r"layers must be one for each of num_hidden_layers \(2\), got 1"),
        ({"layers": {"pattern": []}}, "layers must list hybrid, attention, state"),
        ({"layers": ["state", "none"]}, "layers must be hybrid, attention, state each, got 'none'"),
        ({"layers": ["state", "state"]}, "num_attention_heads .4., got no layer with attention"),
        ({"layers": ["hybrid", "state"], "state_layers": [0]}, "says the same as state_layers"),
        (
            {"layers": ["state", "attention"], "sliding_window": 8, "sliding_window_layers": [0]},
            "sliding_window_layers: layer 0 has no attention",
        ),
        ({"state_short_conv": 1}, "state_short_conv must be 0 or 2 and more taps, got 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WuNengConfig(**(BASE | {"state_kind": "kda"} | changes))


def test_layers_without_company_have_no_middle_heads() -> None:
    """Whatever their number and size, which middle heads would restrict."""
    config = WuNengConfig(**(BASE | INTERLEAVED | {"num_state_heads": 3, "state_head_dim": 16}))
    assert config.cross_head == "none"
    changed = WuNengConfig(**BASE).changed({"state_kind": "kda"})
    assert changed.state_output_gate is True


def test_arms_that_would_change_nothing_are_refused() -> None:
    plain, one = (WuNengConfig(**(BASE | c)) for c in ({"num_state_heads": 0}, {}))
    assert arm_problem("kda", plain) is not None
    assert arm_problem("mha-heads", plain) is not None
    assert arm_problem("kda", one) is None
    single = WuNengConfig(**(BASE | {"num_hidden_layers": 1}))
    assert arm_problem("interleaved", single) is not None
    convolved = WuNengConfig(**(BASE | {"attention_short_conv": 4}))
    assert BUILT_IN_ARMS["mha"].changes(convolved)["attention_short_conv"] == 0


def test_a_state_that_shifts_and_convolves_has_no_control() -> None:
    arms = {
        "wuneng": {"kind": "hybrid", "token_shift": True, "short_conv": True},
        "mha": {"kind": "attention"},
        "mha-shift": {"kind": "shifted attention"},
    }
    assert pick_arms(arms).control is None
    arms["wuneng"]["short_conv"] = False
    assert pick_arms(arms).control == "mha-shift"
