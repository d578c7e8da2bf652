"""Controls that a model cannot have, or that no one knows, are refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small import BASE, small_model
from wuneng import WuNengConfig, WuNengForCausalLM, kinds
from wuneng.controls.names import Control, Head, parse_state_control
from wuneng.controls.switch import controlled
from wuneng.errors import InputError, ModelError
from wuneng.layers.state.base import StateHeads

IDS = torch.arange(24).view(2, 12)


def test_what_a_model_has_not_is_refused_by_name() -> None:
    plain = small_model("mha")
    for name in ("zero", "permute", "donor", "layers", "frozen:4", "reset:4"):
        control = parse_state_control(name)
        with pytest.raises(ModelError, match=f"{name}: the model has no state heads"):
            controlled(plain, control).__enter__()
    pure = small_model("pure-state")
    with pytest.raises(ModelError, match="attention: the model has no attention heads"):
        controlled(pure, Control("attention")).__enter__()
    one = small_model("state-in-second-layer")
    with pytest.raises(ModelError, match="layers: only one layer has state heads"):
        controlled(one, Control("layers")).__enter__()
    missing = Control("head", head=Head("state", 0, 0))
    with pytest.raises(ModelError, match=r"the model has no state head 0\.0"):
        controlled(one, missing).__enter__()


class Private(StateHeads):
    """A kind that keeps its recurrence to itself."""

    def read(self, x: Tensor, attention: Any, layout: Any, slot: Any) -> Tensor:
        return self.readout(self.r_proj(x).unflatten(-1, (self.heads, self.head_dim)).cumsum(1))


def test_a_kind_whose_recurrence_cannot_be_reached_is_named() -> None:
    kinds.register("state", "private")(Private)
    try:
        config = WuNengConfig(**(BASE | {"state_kind": "private", "token_shift": "none"}))
        model = WuNengForCausalLM(config).eval()
    finally:
        del kinds._REGISTERED["state"]["private"]
    with controlled(model, Control("zero")):
        model(IDS)
    with (
        controlled(model, Control("reset", 4)),
        pytest.raises(ModelError, match="reset:4: state heads of kind private do not run"),
    ):
        model(IDS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("donnor", "Did you mean 'donor'"),
        ("frozen", "frozen needs a number of tokens, as in frozen:64"),
        ("reset:0", "reset takes a number of tokens from 1, as in reset:64, got 'reset:0'"),
        ("reset:-3", "reset takes a number of tokens"),
        ("reset:many", "reset takes a number of tokens"),
        ("donor:3", "donor takes no number, got 'donor:3'"),
    ],
)
def test_mistaken_names(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_state_control(text)
    assert parse_state_control("reset:1k") == Control("reset", 1024)
