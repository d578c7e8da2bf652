"""Whatever is changed about a model, its decoded tokens are what its modules give.

Each case was found by a reviewer: it crashed, or was silently another model in one call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.decoded import counted
from tests.model.small import in_pieces, small_model
from tests.model.test_decoded_kinds import model_of
from wuneng import WuNengForCausalLM
from wuneng.layers.attention import Attention
from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.short_conv import ShortConv
from wuneng.layers.state.gated_delta import GatedDelta
from wuneng.layers.state.kda import KDA
from wuneng.layers.state.rwkv7 import RWKV7
from wuneng.ops import native

pytestmark = pytest.mark.skipif(native.library(16) is None, reason="no C compiler on this machine")
IDS = torch.randint(1, 61, (1, 8), generator=torch.Generator().manual_seed(3))
Change = Callable[[WuNengForCausalLM], Any]


def _heads(model: Any, layer: int = 0) -> Any:
    return model.model.layers[layer].state_heads


def _check(model: Any, *, tokens: Tensor = IDS) -> list[bool]:
    """Decode, and compare with one call over all tokens; which calls were taken."""
    with counted() as taken:
        found = in_pieces(model, tokens, [4, 1, 1, 1, 1])
    whole = in_pieces(model, tokens, [tokens.shape[1]])
    torch.testing.assert_close(found, whole, rtol=2e-3, atol=2e-3)
    return taken[1:]


def _own_config(kind: type) -> Change:
    def change(model: WuNengForCausalLM) -> None:
        config = model.config.changed({"state_short_conv": 0, "state_a_max": 2.0})
        model.model.layers[1].state_heads = kind(config, 1)
        model.model.layers[1].state_heads.initialise(config)

    return change


def _own_copy_changed(model: WuNengForCausalLM) -> None:
    heads = _heads(model, 1)
    heads.config = copy.deepcopy(model.config)
    heads.config.state_a_max = 0.1


def _gate_of_a_token(model: WuNengForCausalLM) -> None:
    attention = model.model.layers[0].self_attn
    attention.g_proj = nn.Linear(64, 1, bias=False)


def _one_beta(model: WuNengForCausalLM) -> None:
    _heads(model).b_proj = nn.Linear(64, 1, bias=False)


def _one_convolution(model: WuNengForCausalLM) -> None:
    _heads(model).k_conv = conv = ShortConv(1, 4)
    conv.initialise()


def _one_convolution_of_queries(model: WuNengForCausalLM) -> None:
    model.model.layers[0].self_attn.q_conv = conv = ShortConv(1, 3)
    nn.init.uniform_(conv.weight)


def _one_norm(model: WuNengForCausalLM) -> None:
    heads = _heads(model)
    heads.o_norm = HeadRMSNorm(1, heads.head_dim, heads.o_norm.eps)


def _one_rate(model: WuNengForCausalLM) -> None:
    _heads(model).A_log = nn.Parameter(torch.zeros(1))


def _one_gate_bias(model: WuNengForCausalLM) -> None:
    middle = model.model.layers[0].cross_head
    middle.gate_bias = nn.Parameter(middle.gate_bias.detach()[:1].clone())


def _shift_as_buffer(model: WuNengForCausalLM) -> None:
    heads = _heads(model)
    value = heads.shift_k.detach().clone()
    del heads.shift_k
    heads.register_buffer("shift_k", value)


def _rate_as_buffer(model: WuNengForCausalLM) -> None:
    heads = _heads(model)
    value = heads.A_log.detach().clone()
    del heads.A_log
    heads.register_buffer("A_log", value)


def _bias_as_buffer(model: WuNengForCausalLM) -> None:
    for name in ("r_proj", "k_proj"):
        linear = getattr(_heads(model), name, None)
        if linear is not None:
            del linear.bias
            linear.register_buffer("bias", torch.full((linear.out_features,), 0.3))


def _weight_as_tensor(model: WuNengForCausalLM) -> None:
    linear = _heads(model).r_proj
    value = linear.weight.detach().clone()
    del linear.weight
    linear.weight = value


def _method(name: str) -> Change:
    """A method of the first layer's heads whose result is halved."""

    def change(model: WuNengForCausalLM) -> None:
        heads = _heads(model)
        right = getattr(heads, name)

        def halved(*given: Any, **named: Any) -> Any:
            out = right(*given, **named)
            return tuple(x / 2 for x in out) if isinstance(out, tuple) else out / 2

        setattr(heads, name, halved)

    return change


def _convolve_of_attention(model: WuNengForCausalLM) -> None:
    attention = model.model.layers[0].self_attn
    right = attention._convolve
    attention._convolve = lambda *given: right(*given) / 2


CHANGES: dict[str, Change] = {
    "heads of a configuration of their own": _own_config(KDA),
    "other heads of a configuration of their own": _own_config(GatedDelta),
    "a changed copy of the configuration": _own_copy_changed,
    "a gate for a token": _gate_of_a_token,
    "one rate for all heads": _one_beta,
    "one convolution for all channels": _one_convolution,
    "one convolution for all queries": _one_convolution_of_queries,
    "one norm for all heads": _one_norm,
    "one decay for all heads": _one_rate,
    "one bias for all middle heads": _one_gate_bias,
    "a shift that is a buffer": _shift_as_buffer,
    "a decay that is a buffer": _rate_as_buffer,
    "a bias that is a buffer": _bias_as_buffer,
    "a weight that is no parameter": _weight_as_tensor,
    "another gate": _method("gate"),
    "another decay": _method("log_decay"),
    "another read": _method("read"),
    "another convolution": _method("convolved"),
    "another shift": _method("shifted"),
    "another convolution of attention": _convolve_of_attention,
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_modules_decide(name: str) -> None:
    model = model_of("kda")
    assert all(_check(model))
    CHANGES[name](model)
    model.eval()
    assert not any(_check(model))


@pytest.mark.parametrize(
    ("kind", "owner", "name"),
    [
        ("gated_delta", GatedDelta, "gate"),
        ("kda", KDA, "log_decay"),
        ("rwkv7", RWKV7, "_gate"),
        ("rwkv7", RWKV7, "_receptance_and_logits"),
        ("kda", Attention, "_convolve"),
    ],
)
def test_a_class_that_somebody_patches(
    kind: str, owner: type, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(kind)
    assert all(_check(model))
    right = getattr(owner, name)

    def halved(*given: Any) -> Any:
        out = right(*given)
        return tuple(x / 2 for x in out) if isinstance(out, tuple) else out / 2

    monkeypatch.setattr(owner, name, halved)
    assert not any(_check(model))
    monkeypatch.undo()
    assert all(_check(model))


def test_a_bias_that_is_a_buffer_does_not_stop_training() -> None:
    model = small_model(hidden_size=64)
    _bias_as_buffer(model)
    model.train()
    model(IDS, labels=IDS).loss.backward()


def test_convolutions_that_the_configuration_counts_otherwise() -> None:
    """Room for the tokens they keep is the weights', not the configuration's."""
    model = model_of("kda")
    model.config.state_short_conv = 0
    with torch.no_grad():
        cache = model(IDS[:, :4], use_cache=True).past_key_values
    model.config.state_short_conv = 2
    with torch.no_grad(), counted() as taken:
        found = model(IDS[:, 4:5], past_key_values=copy.deepcopy(cache), use_cache=True).logits
    assert taken == [True]
    _heads(model).register_forward_hook(lambda *_: None)
    with torch.no_grad(), counted() as taken:
        wanted = model(IDS[:, 4:5], past_key_values=cache, use_cache=True).logits
    assert taken == [False]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_longer_convolutions_put_in_between_two_tokens_are_an_error_or_right() -> None:
    model = model_of("kda")
    out = model(IDS[:, :4], use_cache=True)
    with torch.no_grad():
        out = model(IDS[:, 4:5], past_key_values=out.past_key_values, use_cache=True)
        for letter in "rkv":
            setattr(_heads(model), f"{letter}_conv", conv := ShortConv(32, 6))
            conv.initialise()
        with counted() as taken, pytest.raises(RuntimeError, match="must match"):
            model(IDS[:, 5:6], past_key_values=out.past_key_values, use_cache=True)
    assert not any(taken)


def test_first_values_are_those_of_heads_that_have_them() -> None:
    """Delta-rule heads in the layer before are no source of RWKV-7's value residual."""
    model = small_model(
        hidden_size=64,
        num_hidden_layers=3,
        state_value_residual=True,
        token_shift="none",
        state_key_source="own",
        state_value_source="own",
        cross_head="none",
    )
    model.model.layers[0].state_heads = KDA(model.config, 0)
    model.model.layers[0].state_heads.initialise(model.config)
    with torch.no_grad():
        model.model.layers[0].cross_head.branch_proj.weight.normal_(std=0.2)
    _check(model.eval())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["kda", "rwkv7"])
def test_room_does_not_depend_on_torchs_defaults(kind: str, dtype: torch.dtype) -> None:
    model = model_of(kind)
    wanted = in_pieces(model, IDS, [4, 1, 1, 1, 1])
    model = model_of(kind)
    try:
        torch.set_default_dtype(dtype)
        found = in_pieces(model, IDS, [4, 1, 1, 1, 1])
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_room_is_on_the_cpu_whatever_the_default_device_is() -> None:
    model = model_of("kda")
    wanted = in_pieces(model, IDS, [4, 1, 1, 1, 1])
    with torch.no_grad():
        cache = model(IDS[:, :4], use_cache=True).past_key_values
        with torch.device("meta"):
            out = model(IDS[:, 4:5], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(out.logits, wanted[:, 4:5], rtol=1e-4, atol=1e-4)
