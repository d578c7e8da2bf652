"""A decoded token's short way through a block gives what the modules give, or is not taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tests.model.small import VARIANTS, plainly, small_model
from tests.precision import CHUNKED_FLOOR, assert_as_exact
from wuneng import WuNengForCausalLM
from wuneng.layers import token_path
from wuneng.layers.state import rwkv7
from wuneng.model.call_arguments import cache_of
from wuneng.ops import native, using

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
SHORT = ["default", "concat", "additive", "gqa-qk-norm-bias", "no-shift", "shift-on-k", "a-max-2"]
SHORT += ["no-bonus-no-norm-scalar", "sliding", "state-in-second-layer", "rwkv-ffn", "mlp-bias"]
SHORT += ["own-key-value", "own-key", "post-norm-multipliers", "four-norms-soft-caps"]
SHORT += ["no-middle", "gqa"]
LONG = ["own-removal-key", "pre-shift", "snapshots", "paper", "pure-state"]
LONG += ["gate-and-value-residual", "value-from-output", "mha"]


def _model(variant: str = "default") -> WuNengForCausalLM:
    return small_model(variant, hidden_size=64)


def _decode(model: WuNengForCausalLM, short: bool = True) -> tuple[Tensor, int]:
    """Logits of tokens decoded one by one, and how many blocks' tokens went the short way."""
    taken = 0

    def one_token(*arguments: Any) -> Any:
        nonlocal taken
        out = token_path.one_token(*arguments) if short else None
        taken += out is not None
        return out

    ids = torch.randint(0, 61, (3, 9), generator=torch.Generator().manual_seed(1))
    # So that not all layers go in one call (wuneng.model.decoded_token).
    watcher = model.model.norm.register_forward_hook(lambda *_: None)
    with mock.patch.object(rwkv7, "one_token", one_token), torch.no_grad():
        out, logits = model(ids[:, :4], use_cache=True), []
        for token in ids[:, 4:].split(1, dim=1):
            out = model(token, past_key_values=cache_of(out), use_cache=True)
            logits.append(out.logits)
    watcher.remove()
    return torch.cat(logits, dim=1), taken


def _assert_right(found: Tensor, model: WuNengForCausalLM) -> None:
    """No less exact than the modules by the plain formulas."""
    plain = plainly(model, lambda m: _decode(m, short=False)[0])
    assert_as_exact(found, *plain, floor=CHUNKED_FLOOR)


@pytest.mark.parametrize("variant", SHORT + LONG)
def test_both_ways_agree(variant: str) -> None:
    model = _model(variant)
    found, taken = _decode(model)
    _assert_right(found, model)
    _assert_right(_decode(model, short=False)[0], model)
    layers = len(VARIANTS[variant].get("state_layers", (0, 1)))
    assert taken == (5 * layers if variant in SHORT else 0)


def test_changed_and_replaced_weights_count_at_once() -> None:
    model = _model()
    _decode(model)
    heads, cross = model.model.layers[0].state_heads, model.model.layers[0].cross_head
    changes: list[Callable[[], Any]] = [
        lambda: heads.k_a.data.mul_(2),
        lambda: setattr(heads, "w0", nn.Parameter(heads.w0.detach() + 1)),
        lambda: setattr(cross.branch_proj.weight, "data", cross.branch_proj.weight * 3),
        lambda: model.load_state_dict({k: v * 1.1 for k, v in model.state_dict().items()}),
        lambda: model.load_state_dict(
            {k: v * 0.9 for k, v in model.state_dict().items()}, assign=True
        ),
    ]
    before = _decode(model)[0]
    for change in changes:
        with torch.no_grad():
            change()
        found, taken = _decode(model)
        assert taken == 10
        assert not torch.allclose(found, before, atol=1e-5)
        _assert_right(found, model)
        before = found


def test_other_batches_and_a_copy_have_their_own_memory() -> None:
    model = _model()
    _decode(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.2)
        one = cache_of(model(torch.tensor([[5]]), use_cache=True))
        model(torch.tensor([[6]]), past_key_values=one, use_cache=True)
    _assert_right(_decode(twin)[0], twin)
    _assert_right(_decode(model)[0], model)


def test_the_cache_that_was_given_is_not_written_to() -> None:
    model = _model()
    with torch.no_grad():
        cache = cache_of(model(torch.tensor([[1, 2, 3]]), use_cache=True))
        kept = [dict(layer.states) for layer in cache.layers]
        values = [{n: x.clone() for n, x in states.items()} for states in kept]
        model(torch.tensor([[4]]), past_key_values=cache, use_cache=True)
    for states, before in zip(kept, values, strict=True):
        assert all(torch.equal(states[n], x) for n, x in before.items())


class _Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("who", ["hook", "projection", "float64", "autocast", "environment"])
def test_whatever_watches_or_differs_takes_the_modules(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model()
    block = model.model.layers[0]
    if who == "hook":
        block.cross_head.register_forward_hook(lambda *_: None)
        block.state_heads.readout.register_forward_hook(lambda *_: None)
        assert _decode(model)[1] == 5
        return
    if who == "projection":
        other = _Doubled(64, 32, bias=False)
        other.weight = block.state_heads.r_proj.weight
        block.state_heads.r_proj = other
        found, taken = _decode(model)
        assert taken == 5
        _assert_right(found, model)
        return
    if who == "environment":
        monkeypatch.setenv("WUNENG_BACKEND", "chunked")
    if who == "float64":
        model = model.double()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=who == "autocast"):
        assert _decode(model)[1] == 0


def test_torch_can_be_asked_for_meanwhile() -> None:
    model = _model()
    with using("chunked"):
        expected, taken = _decode(model)
        assert taken == 0
    found, taken = _decode(model)
    assert taken == 10
    _assert_right(expected, model)
    _assert_right(found, model)
