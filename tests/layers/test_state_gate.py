"""RWKV-7's output gate in both forms: equations, gradients, counts, refusals, initial values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.layers.gradients import SMALL, assert_gradients
from tests.model.small import BASE, small_model
from wuneng import WuNengConfig
from wuneng.layers.layout import SequenceLayout
from wuneng.layers.state.rwkv7 import RWKV7
from wuneng.model.counting import total_parameters
from wuneng.model.parameter_groups import groups_of
from wuneng.recipe import ModelSettings
from wuneng.recipe.arms import built_in

GATED = {"state_output_gate": True, "state_key_source": "own", "state_value_source": "own"}
FORMS = ("hidden", "output")


def heads(**fields: Any) -> RWKV7:
    """A layer's heads in float64, every parameter shaken awake."""
    torch.manual_seed(0)
    made = RWKV7(WuNengConfig(**(BASE | GATED | fields)), 0).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return made


def read(h: RWKV7, x: Tensor) -> Tensor:
    out: Tensor = h(x, None, None, SequenceLayout.dense(*x.shape[:2]))[0]
    return out


def gate_by_hand(h: RWKV7, x: Tensor) -> Tensor:
    """RWKV-LM's sigma(x g1) g2, or KDA's sigma(x g1 g2 + g0), ``[B, T, S, N]``."""
    p = dict(h.named_parameters())
    if "g0" not in p:
        gate = torch.sigmoid(x @ p["g1"]) @ p["g2"]
    else:
        gate = torch.sigmoid(x @ p["g1"] @ p["g2"] + p["g0"])
    return gate.unflatten(-1, (h.heads, h.head_dim))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shift", ["post", "none"])
def test_what_is_read_is_multiplied_by_the_gate(form: str, shift: str) -> None:
    gated = heads(state_gate_sigmoid=form, token_shift=shift)
    plain = heads(state_output_gate=False, token_shift=shift)
    left = gated.load_state_dict(plain.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) == {"g1", "g2"} | ({"g0"} if form == "output" else set())
    x = torch.randn(2, 21, 32, dtype=torch.float64)
    wanted = read(plain, x) * gate_by_hand(gated, x)
    torch.testing.assert_close(read(gated, x), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
def test_gradients(form: str) -> None:
    h = heads(**SMALL, state_gate_sigmoid=form)
    names = [n for n, _ in h.named_parameters() if n in ("g0", "g1", "g2", "v_proj.weight")]
    assert len(names) == (4 if form == "output" else 3)
    assert_gradients(h, names)


def test_in_bfloat16_the_gate_is_of_the_inputs_dtype() -> None:
    h = heads(state_gate_sigmoid="output").bfloat16()
    x = torch.randn(2, 9, 32, dtype=torch.bfloat16)
    found = read(h, x)
    assert found.dtype == torch.bfloat16
    wanted = read(h.double(), x.double())
    assert (found - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("state_init", ["even", "published"])
def test_the_gate_after_both_matrices_starts_at_a_half(state_init: str) -> None:
    torch.manual_seed(0)
    fields = BASE | GATED | {"state_gate_sigmoid": "output", "state_init": state_init}
    h = RWKV7(WuNengConfig(**fields), 0)
    h.initialise(h.config)
    gate = gate_by_hand(h, torch.randn(2, 5, 32))
    torch.testing.assert_close(gate, torch.full_like(gate, 0.5))
    one_awake = {"even": h.g1, "published": h.g2}[state_init]  # or neither would ever learn
    assert one_awake.abs().min() > 0


def test_its_bias_is_counted_and_not_decayed() -> None:
    with_bias, without = (small_model(**GATED, state_gate_sigmoid=f) for f in ("output", "hidden"))
    added = sum(p.numel() for n, p in with_bias.named_parameters() if n.endswith("state_heads.g0"))
    assert added == 2 * with_bias.config.num_state_heads * with_bias.config.state_head_dim
    counts = [total_parameters(model.config) for model in (with_bias, without)]
    assert counts[0] - counts[1] == added
    groups = groups_of(with_bias)
    assert all(groups[n] != "decay" for n, _ in with_bias.named_parameters() if n.endswith(".g0"))


def test_each_kind_has_its_own_form() -> None:
    assert WuNengConfig(**BASE).state_gate_sigmoid == "output"
    kda = WuNengConfig(**BASE).changed({"state_kind": "kda"})
    assert kda.state_gate_sigmoid == "output"
    with pytest.raises(ValueError, match="state_gate_sigmoid must be output where state_kind is"):
        kda.changed({"state_gate_sigmoid": "hidden"})
    delta = WuNengConfig(**BASE).changed({"state_kind": "gated_delta"})
    assert delta.state_gate_sigmoid is None
    with pytest.raises(ValueError, match="state_gate_sigmoid must be None where state_kind is"):
        delta.changed({"state_gate_sigmoid": "output"})
    with pytest.raises(ValueError, match="must be one of hidden, output, got 'inner'"):
        WuNengConfig(**BASE, state_gate_sigmoid="inner")


@pytest.mark.parametrize("arm", ["gated-delta", "kda", "rwkv7", "mha"])
def test_arms_of_other_kinds_have_their_own_form(arm: str) -> None:
    base = ModelSettings(state_output_gate=True, state_gate_sigmoid="output")
    changed = built_in(arm, base)
    assert changed.get("state_gate_sigmoid") == ("hidden" if arm == "rwkv7" else None)
