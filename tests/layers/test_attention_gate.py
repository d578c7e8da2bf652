"""Attention's output gate: A sigma(x W_g), before middle heads and the output projection see A."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small import BASE, disturbed
from wuneng.layers.attention import Attention, AttentionHeads
from wuneng.model import WuNengConfig, WuNengForCausalLM

WIRINGS: dict[str, dict[str, Any]] = {
    "attention alone": {"num_state_heads": 0},
    "beside state heads": {"cross_head": "none"},
    "under middle heads": {"cross_head": "gated"},
    "read by state heads": {"state_value_source": "attention_output"},
}


def pair(changes: dict[str, Any]) -> tuple[WuNengForCausalLM, WuNengForCausalLM]:
    """The same float64 weights without and with the gate."""
    torch.manual_seed(0)
    plain, gated = (
        disturbed(
            WuNengForCausalLM(WuNengConfig(**(BASE | changes), attention_output_gate=gate))
            .double()
            .eval()
        )
        for gate in (False, True)
    )
    missing = gated.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert {name.split(".")[-2] for name in missing} == {"g_proj"}
    return plain, gated


def attention_of(model: WuNengForCausalLM, ids: Tensor) -> tuple[Tensor, AttentionHeads]:
    """What the first layer's attention reads and what it gives."""
    found = []
    first = next(m for m in model.modules() if isinstance(m, Attention))

    def note(_: Any, arguments: tuple[Any, ...], named: dict[str, Any], result: Any) -> None:
        found.append((arguments[0] if arguments else named["hidden"], result[0]))

    with first.register_forward_hook(note, with_kwargs=True), torch.no_grad():
        model(ids)
    return found[0]


@pytest.mark.parametrize("wiring", WIRINGS)
def test_output_is_gated_channel_by_channel(wiring: str) -> None:
    plain, gated = pair(WIRINGS[wiring])
    ids = torch.randint(BASE["vocab_size"], (2, 7))
    (hidden, before), (same, after) = attention_of(plain, ids), attention_of(gated, ids)
    assert torch.equal(hidden, same)
    weight = next(p for n, p in gated.named_parameters() if n.endswith("g_proj.weight"))
    wanted = before.output * torch.sigmoid(hidden @ weight.T)
    torch.testing.assert_close(after.output, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(before.key, after.key)
    assert torch.equal(before.value, after.value)


def test_gates_of_one_half_and_outputs_twice_as_large_change_nothing() -> None:
    plain, gated = pair({"num_state_heads": 0})
    with torch.no_grad():
        for name, parameter in gated.named_parameters():
            if name.endswith("g_proj.weight"):
                parameter.zero_()
            if name.endswith("o_proj.weight"):
                parameter.mul_(2)
    ids = torch.randint(BASE["vocab_size"], (2, 9))
    torch.testing.assert_close(plain(ids).logits, gated(ids).logits, rtol=1e-12, atol=1e-12)


def test_tokens_one_by_one_are_those_of_the_whole() -> None:
    _, gated = pair({})
    ids = torch.randint(BASE["vocab_size"], (2, 9))
    with torch.no_grad():
        whole, cache, steps = gated(ids).logits, None, []
        for token in ids.split(1, dim=1):
            out = gated(token, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-9, atol=1e-9)
