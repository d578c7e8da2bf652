"""What an upgrade does with a layer's branch, in layers of every wiring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small import small_model
from wuneng.model.branch_way import branch_ways, replace_attention, silenced

WIRINGS = ("default", "post-norm-multipliers", "four-norms-soft-caps")
IDS = torch.arange(18).view(2, 9) * 7 % 61


def _silent(variant: str) -> Any:
    """The same model with a branch that adds exactly nothing."""
    model = small_model(variant)
    for block in model.model.layers:
        torch.nn.init.zeros_(block.cross_head.branch_proj.weight)
    return model


@torch.no_grad()
@pytest.mark.parametrize("variant", WIRINGS)
def test_silenced_is_the_model_without_what_the_branch_adds(variant: str) -> None:
    model = small_model(variant)
    with silenced(model):
        found = model(IDS).logits
    assert torch.equal(found, _silent(variant)(IDS).logits)
    assert not torch.equal(found, model(IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("variant", WIRINGS)
@pytest.mark.parametrize("whole_layer", [False, True])
def test_watched_layers_see_the_silent_models_activations(variant: str, whole_layer: bool) -> None:
    model = small_model(variant).train().double()
    asked: dict[int, Tensor] = {}
    for way in branch_ways(model).values():
        way.watch = lambda layer, said, wanted: asked.update({layer: wanted})
        way.whole_layer = whole_layer
    found = model(IDS, output_hidden_states=True)
    expected = _silent(variant).double()(IDS, output_hidden_states=True)
    assert torch.equal(found.logits, expected.logits)
    before, after = expected.hidden_states[:2]
    block = model.model.layers[0]
    if whole_layer:
        assert torch.allclose(asked[0], after - before, atol=1e-10)
    else:
        said = block.from_heads(asked[0])
        fed = block.from_feed_forward(before + said, *_layout(model))
        assert torch.allclose(before + said + fed, after, atol=1e-10)


def _layout(model: Any) -> tuple[Any, None]:
    from wuneng.model.token_layout import sequence_layout

    return sequence_layout(model.config, model.model.embed_tokens(IDS), None, None), None


@torch.no_grad()
@pytest.mark.parametrize("variant", WIRINGS)
def test_a_branch_in_attentions_place_stands_behind_the_same_norm(variant: str) -> None:
    """A branch that says what attention says changes nothing where it replaces attention."""
    own = {"state_key_source": "own", "state_value_source": "own", "cross_head": "none"}
    model, said = small_model(variant, **own).double(), {}
    first = model.model.layers[0]
    first.self_attn.o_proj.register_forward_hook(
        lambda module, inputs, output: said.update(attention=output)
    )
    with silenced(model):
        expected = model(IDS).logits
    replace_attention(model, [0])
    branch_ways(model)[1].silent = True
    first.cross_head.register_forward_hook(
        lambda module, inputs, output: (output[0], said["attention"])
    )
    assert torch.allclose(model(IDS).logits, expected, atol=1e-10)
