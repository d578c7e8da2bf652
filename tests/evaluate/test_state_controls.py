"""Silencing or exchanging the state's readout at evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.small import plainly
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng.controls.names import Control, parse_state_control
from wuneng.controls.switch import controlled
from wuneng.errors import InputError, ModelError
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.layers.state.rwkv7 import RWKV7 as StateHeads

Load = Callable[..., Any]


@pytest.fixture
def model(load: Load, wuneng_directory: Path) -> Any:
    return load(wuneng_directory).model


def tokens(batch: int, length: int = 12) -> Tensor:
    return torch.randint(0, 256, (batch, length), generator=torch.Generator().manual_seed(batch))


@torch.no_grad()
def logits(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    found: Tensor = model(ids, **arguments).logits
    return found


@torch.no_grad()
def readouts(model: Any, ids: Tensor, **arguments: Any) -> list[Tensor]:
    """What each layer's state says, after any control, `[B, T, S, N]`."""
    seen: list[Tensor] = []
    hooks = [
        one.readout.register_forward_hook(lambda _m, _i, y: seen.append(y))
        for one in model.modules()
        if isinstance(one, StateHeads)
    ]
    model(ids, **arguments)
    for hook in hooks:
        hook.remove()
    return seen


def test_keep_changes_nothing_and_controls_leave_no_trace(model: Any) -> None:
    ids = tokens(2)
    before = logits(model, ids)
    with controlled(model, Control("keep")):
        assert torch.equal(logits(model, ids), before)
    with controlled(model, Control("zero")):
        assert not torch.allclose(logits(model, ids), before, atol=1e-3)
    assert torch.equal(logits(model, ids), before)


def test_zero_silences_every_layer(model: Any) -> None:
    with controlled(model, Control("zero")):
        said = readouts(model, tokens(2))
    assert len(said) == 2
    assert all(not y.any() for y in said)


def test_permute_gives_the_readout_of_the_sequence_half_a_batch_away(model: Any) -> None:
    ids = tokens(4)
    own = readouts(model, ids)[0]
    with controlled(model, Control("permute")):
        exchanged = readouts(model, ids)[0]
    assert torch.equal(exchanged, own[[2, 3, 0, 1]])


def test_permute_does_not_let_the_future_in(model: Any) -> None:
    ids = tokens(4)
    changed = ids.clone()
    changed[:, 8:] = 7
    with controlled(model, Control("permute")):
        exact = plainly(model, lambda m: logits(m, ids[:, :8]))
        for found in (logits(model, ids), logits(model, changed)):
            assert_as_exact(found[:, :8], *exact, floor=CHUNKED_FLOOR)


def test_permute_with_pads_moves_rows_not_packed_tokens(model: Any) -> None:
    ids = tokens(2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    own = logits(model, ids, attention_mask=mask)
    with controlled(model, Control("permute")):
        first = readouts(model, ids, attention_mask=mask)[0]
        exchanged = logits(model, ids, attention_mask=mask)
    packed = readouts(model, ids, attention_mask=mask)[0]  # [1, 7 + 12, S, N]
    # Row 0's seven tokens read what row 1 says at their places; row 1 reads zero at row 0's pads.
    assert torch.equal(first[0, :7], packed[0, 7 + 5 :])
    assert not first[0, 7 : 7 + 5].any()
    assert torch.equal(first[0, 7 + 5 :], packed[0, :7])
    assert not torch.allclose(own[:, 5:], exchanged[:, 5:], atol=1e-3)


def test_permute_needs_two_sequences(model: Any) -> None:
    with controlled(model, Control("permute")), pytest.raises(ValueError, match="two sequences"):
        logits(model, tokens(1))


def test_the_harness_model_brings_a_companion(load: Load, wuneng_directory: Path) -> None:
    """A single request gets the previous one's sequence beside it, never its own tokens."""
    harness = HarnessModel(load(wuneng_directory), batch_size=1, companion=True)
    model = harness.model
    first, second = tokens(1, 9), tokens(1, 12) + 1
    with controlled(model, Control("permute")):
        harness.logits(first)
        found = harness.logits(second)
        beside = torch.full_like(second, harness.prefix_token_id)
        beside[:, :9] = first
        pair = torch.cat([second, beside])
        exact = plainly(model, lambda m: logits(m, pair)[:1])
    assert found.shape[0] == 1
    assert_as_exact(found, *exact, floor=CHUNKED_FLOOR)


def test_generation_runs_under_every_control(load: Load, wuneng_directory: Path) -> None:
    from lm_eval.api.instance import Instance

    for control in ("keep", "zero", "permute"):
        harness = HarnessModel(load(wuneng_directory), batch_size=1, companion=control == "permute")
        requests = [
            Instance("generate_until", {}, (text, {"until": ["\n"], "max_gen_toks": 5}), 0)
            for text in ("One cat", "Two dogs and")
        ]
        with controlled(harness.model, Control(control)):
            assert len(harness.generate_until(requests)) == 2


def test_a_model_without_state_heads_is_refused(load: Load, llama_directory: Path) -> None:
    llama = load(llama_directory).model
    with pytest.raises(ModelError, match="no state heads"), controlled(llama, Control("zero")):
        pass


def test_control_names() -> None:
    assert str(parse_state_control("permute")) == "permute"
    with pytest.raises(InputError, match="Did you mean 'zero'"):
        parse_state_control("zeros")
