"""``state_reads: 2``, y = S (W S r): against a loop over tokens, by gradients, cached, counted."""

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
from wuneng.model import counting
from wuneng.model.parameter_groups import groups_of
from wuneng.ops.state_head.recurrence_inputs import LOG_DECAY_SCALE
from wuneng.recipe import ModelSettings
from wuneng.recipe.arms import built_in, resolve_model

OWN = {"state_key_source": "own", "state_value_source": "own"}


def heads(**fields: Any) -> RWKV7:
    """A layer's heads in float64, every parameter shaken awake."""
    torch.manual_seed(0)
    config = WuNengConfig(**(BASE | OWN | {"state_reads": 2} | fields))
    made = RWKV7(config, 0).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made


def by_hand(h: RWKV7, x: Tensor) -> Tensor:
    """y ``[B, T, S, N]`` of the equations, token by token, for ``token_shift: none``."""

    def split(u: Tensor) -> Tensor:
        return u.unflatten(-1, (h.heads, h.head_dim))

    p = dict(h.named_parameters())
    r, k, v = (split(x @ p[f"{letter}_proj.weight"].T) for letter in "rkv")
    w = (LOG_DECAY_SCALE * torch.sigmoid(p["w0"] + torch.tanh(x @ p["w1"]) @ p["w2"])).exp()
    rate = split(torch.sigmoid(p["a0"] + x @ p["a1"] @ p["a2"]))
    kappa = torch.nn.functional.normalize(k * split(p["k_k"]), dim=-1)
    key = k * (1 + (rate - 1) * split(p["k_a"]))
    w = split(w)
    state = x.new_zeros(x.shape[0], h.heads, h.head_dim, h.head_dim)
    read = []
    for t in range(x.shape[1]):
        removed = torch.einsum("bsij,bsj->bsi", state, kappa[:, t])
        state = state * w[:, t, :, None] - removed[..., None] * (rate * kappa)[:, t, :, None]
        state = state + v[:, t, ..., None] * key[:, t, :, None]
        once = torch.einsum("bsij,bsj->bsi", state, r[:, t])
        again = torch.einsum("bsi,sij->bsj", once, p["read_weight"])
        read.append(torch.einsum("bsij,bsj->bsi", state, again))
    return torch.stack(read, 1)


def test_the_state_is_read_by_what_was_read_of_it() -> None:
    h = heads(token_shift="none", state_norm="none", state_bonus=False)
    x = torch.randn(2, 21, 32, dtype=torch.float64)
    found, _ = h(x, None, None, SequenceLayout.dense(2, 21))
    torch.testing.assert_close(found, by_hand(h, x), rtol=1e-9, atol=1e-10)
    once = heads(token_shift="none", state_norm="none", state_bonus=False, state_reads=1)
    other, _ = once(x, None, None, SequenceLayout.dense(2, 21))
    assert (found - other).abs().max() > 0.1


@pytest.mark.parametrize("fields", [{}, {"state_output_gate": True, "snapshots": 1}])
def test_gradients(fields: dict[str, Any]) -> None:
    assert_gradients(heads(**SMALL, **fields), ["read_weight", "r_proj.weight", "w2", "shift_r"])


@pytest.mark.parametrize("fields", [{}, {"snapshots": 2}, {"token_shift": "pre", **OWN}])
def test_decoding_token_by_token_is_the_whole(fields: dict[str, Any]) -> None:
    model = small_model(state_reads=2, **fields).double()
    ids = torch.randint(0, 61, (2, 37))
    with torch.no_grad():
        whole = model(ids).logits
        cache, steps = None, []
        for part in (ids[:, :20], *ids[:, 20:].split(1, dim=1)):
            out = model(part, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
        once = small_model(**fields).double()(ids).logits
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-10)
    assert (once - whole).abs().max() > 1e-3


def test_it_is_counted_and_decays() -> None:
    fields = BASE | {"snapshots": 1}
    one, two = (WuNengConfig(**fields, state_reads=n) for n in (1, 2))
    squares = two.num_hidden_layers * two.num_state_heads * two.state_head_dim**2
    assert counting.total_parameters(two) - counting.total_parameters(one) == squares
    flops = [counting.forward_flops_per_token(config, 64) for config in (one, two)]
    assert flops[1] - flops[0] == squares * (2 + 2 * 2)  # W, another read of state and snapshot
    groups = groups_of(small_model(state_reads=2))
    assert groups["model.layers.0.state_heads.read_weight"] == "decay"


@pytest.mark.parametrize("kind", ["gated_delta", "kda"])
def test_other_kinds_refuse_it(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"state_reads must be 1 where state_kind is {kind}"):
        WuNengConfig(**BASE, state_kind=kind, state_reads=2)
    arm = {"gated_delta": "gated-delta"}.get(kind, kind)
    assert built_in(arm, ModelSettings(state_reads=2))["state_reads"] == 1
    with pytest.raises(ValueError, match=r"state_reads must lie in 1\.\.2, got 3"):
        WuNengConfig(**BASE, state_reads=3)


def test_the_papers_wiring_reads_twice() -> None:
    assert resolve_model({}, {"preset": "paper"}).state_reads == 2
    assert resolve_model({}, {"preset": "paper", "state_reads": 1}).state_reads == 1
