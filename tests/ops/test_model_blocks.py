"""What Python packs of a model for a decoded token's one call is what the C header says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ops.native_blocks import MIDDLE, WEIGHTS, check_cross_head, check_low_rank, read
from wuneng.ops.head_arguments import HeadOptions, HeadWeights, LinearPair, LowRank
from wuneng.ops.low_rank import native as low_rank
from wuneng.ops.native import hybrid_token, model_token, token_arguments
from wuneng.ops.native.delta_arguments import DeltaWeights


def _convolutions(*channels: int) -> Any:
    return tuple(torch.randn(n, 3 + i) for i, n in enumerate(channels))


def _check_convolutions(found: Any, weights: Any) -> None:
    assert [(x.taps, x.count) for x in found] == [(x.data_ptr(), x.shape[1]) for x in weights]


def _state_weights(*receptance: torch.Tensor, **more: Any) -> token_arguments.StateWeights:
    head = HeadWeights(*(torch.randn(32) for _ in range(8)))
    branch = torch.randn(12, 64)
    return token_arguments.StateWeights(
        hybrid_token.TokenWeights(*receptance, *WEIGHTS, head, *MIDDLE.values(), branch),
        hybrid_token.TokenOptions(HeadOptions(2, 16, letters="k"), "additive", 4, 1e-5),
        **more,
    )


def _layer_tensors() -> list[torch.Tensor]:
    """D 12, H 4, G 2, N 16, F 20."""
    tensors = [torch.randn(12), *(torch.randn(n, 12) for n in (64, 32, 32)), torch.randn(12, 64)]
    tensors += [torch.randn(n) for n in (64, 32, 32, 12, 16, 16, 32, 32, 12)]
    tensors += [torch.randn(20, 12), torch.randn(20, 12), torch.randn(12, 20)]
    return [*tensors, *(torch.randn(n) for n in (20, 20, 12)), torch.randn(64, 12)]


def test_a_models_token(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]], repository: Path
) -> None:
    """Two layers, the second with S 2 state heads; B 3."""
    tensors, numbers = _layer_tensors(), (1e-5, 2e-5, 3e-5, 4e-5, 0.25)
    own = [torch.randn(32, 12) for _ in range(3)]
    convolved, convs = _convolutions(64, 32, 32), _convolutions(32, 32, 32)
    state = _state_weights(own[2], own_key=own[0], own_value=own[1], conv=convs)
    layers = [token_arguments.LayerWeights(*tensors, convolved, numbers, x) for x in (None, state)]
    norm = token_arguments.FinalNorm(torch.randn(12), 5e-5)
    call = model_token.make(layers, norm, 16, 3)
    assert call is not None
    hidden, rotation = torch.randn(3, 1, 12), (torch.randn(3, 1, 16), torch.randn(3, 1, 16))
    keys, values = torch.randn(3, 2, 400, 16)[:, :, :300], torch.randn(3, 2, 400, 16)[:, :, :300]
    states = [torch.randn(3, 2, 16, 16), torch.randn(3, 2, 16, 16), *torch.randn(2, 3, 32)]
    caches = [
        token_arguments.LayerCache(keys, values),
        token_arguments.LayerCache(values, keys, *states),
    ]
    seen = torch.ones(3, 310, dtype=torch.bool)
    out = call(hidden, rotation, seen, caches)
    model, given = (
        read(blocks[x], y) for x, y in zip(("TokenModel", "TokenCall"), handed[0], strict=True)
    )
    assert (model.layers, model.batch, model.threads) == (2, 3, torch.get_num_threads())
    assert (model.width, model.heads, model.groups, model.inner) == (12, 4, 2, 20)
    assert (model.first, model.norm, model.norm_eps) == (1, norm.weight.data_ptr(), 5e-5)
    found = (2 * blocks["TokenLayer"]).from_address(model.layer)
    for name, x in zip(token_arguments.LayerWeights._fields[:21], tensors, strict=True):
        assert [getattr(layer, name) for layer in found] == [x.data_ptr()] * 2, name
    for layer in found:
        names = ("input_eps", "q_eps", "k_eps", "feed_eps", "scaling")
        assert tuple(getattr(layer, x) for x in names) == numbers
        _check_convolutions(layer.conv, convolved)
    assert (found[0].hybrid, found[0].parts) == (0, 0)
    parts = blocks["StateParts"].from_address(found[1].parts)
    assert (parts.own_key, parts.own_value) == tuple(x.data_ptr() for x in own[:2])
    assert [parts.mix_r, parts.gate.down, parts.residual.down, parts.delta.beta] == [0, 0, 0, 0]
    _check_convolutions(parts.conv, convs)
    hybrid = blocks["HybridToken"].from_address(found[1].hybrid)
    assert hybrid.receptance.weight == own[2].data_ptr()
    check_cross_head(hybrid.cross, 3)
    # The result goes where the token's hidden states were copied to.
    assert given.hidden == out.data_ptr() != hidden.data_ptr()
    assert torch.equal(out, hidden)
    assert (given.cos, given.sin, given.rotations) == (*(x.data_ptr() for x in rotation), 16)
    assert (given.seen, given.columns, given.pieces) == (seen.data_ptr(), 310, 2)
    constants = dict(
        re.findall(
            r"#define (\w+) (\d+)", (repository / "wuneng/ops/native/model_token.h").read_text()
        )
    )
    assert int(constants["PIECE"]) == model_token._PIECE
    assert int(constants["MOST_TOKENS"]) == model_token.MOST_SEQUENCES
    assert int(constants["INPUTS"]) == 1 + len(token_arguments.MIXED)


def test_a_models_token_without_attention(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]]
) -> None:
    """Two layers of RWKV-7's own form; only the second has earlier values to mix in."""
    absent = (*range(1, 13), 20)
    kept: list[Any] = [None if n in absent else x for n, x in enumerate(_layer_tensors())]
    mixtures = tuple(torch.randn(12) for _ in token_arguments.MIXED)
    gate, residual = LowRank(torch.randn(12, 6), torch.randn(6, 32), None), WEIGHTS[1]
    state = _state_weights(torch.randn(32, 12), mixtures=mixtures, gate=gate, residual=residual)
    none = token_arguments.NO_CONVOLUTIONS
    layers = [token_arguments.LayerWeights(*kept, none, (0.0,) * 5, state) for _ in range(2)]
    call = model_token.make(layers, token_arguments.FinalNorm(torch.randn(12), 5e-5), 16, 3)
    assert call is not None
    call(torch.randn(3, 1, 12), None, None, [token_arguments.LayerCache()] * 2)
    model, given = (
        read(blocks[x], y) for x, y in zip(("TokenModel", "TokenCall"), handed[0], strict=True)
    )
    assert (model.heads, model.groups, model.first, model.inner) == (0, 0, 0, 20)
    assert (given.cos, given.sin, given.rotations, given.pieces) == (0, 0, 0, 0)
    found = (2 * blocks["TokenLayer"]).from_address(model.layer)
    parts = [blocks["StateParts"].from_address(layer.parts) for layer in found]
    for one in parts:
        names = [getattr(one, f"mix_{letter}") for letter in token_arguments.MIXED]
        assert names == [x.data_ptr() for x in mixtures]
        check_low_rank(one.gate, gate, low_rank.SIGMA)
    assert parts[0].residual.down == 0
    check_low_rank(parts[1].residual, residual, low_rank.NOTHING)


def test_a_gate_whose_sigma_comes_last(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]]
) -> None:
    parts = _parts(blocks, handed, gate=WEIGHTS[1])
    check_low_rank(parts.gate, WEIGHTS[1], low_rank.SIGMA_LAST)


@pytest.mark.parametrize("whole", [True, False])
def test_delta_rule_heads(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]], whole: bool
) -> None:
    """``whole``: one decay for a head, and a gate of full width."""
    step, gate = (torch.randn(2, 12), torch.randn(32, 12)) if whole else (None, None)
    bias = torch.randn(2 if whole else 32)
    beta, rate, norm = torch.randn(2, 12), torch.randn(2), torch.randn(2, 16)
    shift = (torch.randn(32), None, torch.randn(32))
    given = DeltaWeights(beta, step, rate, bias, norm, gate, shift, "vr", 2.0, 1e-4)
    narrow = LinearPair(torch.randn(8, 12), torch.randn(32, 8), torch.randn(32))
    parts = _parts(blocks, handed, gate=None if whole else narrow, delta=given, decay=narrow)
    found = parts.delta
    names = ("beta", "step", "log_rate", "step_bias", "norm", "gate")
    wanted = [0 if x is None else x.data_ptr() for x in (beta, step, rate, bias, norm, gate)]
    assert [getattr(found, x) for x in names] == wanted
    assert list(found.shift) == [0 if x is None else x.data_ptr() for x in shift]
    assert (list(found.slots), found.carry_row) == ([1, -1, 0], 64)
    assert (found.a_max, found.norm_eps) == (2.0, 1e-4)
    assert len({found.beta_out, found.step_out, found.gate_out, 0}) == 4
    if not whole:
        check_low_rank(parts.gate, narrow, low_rank.SIGMA_LAST)
    model = read(blocks["TokenModel"], handed[0][0])
    assert model.first == -1  # no values of RWKV-7's heads are mixed in
    hybrid = blocks["HybridToken"].from_address(
        blocks["TokenLayer"].from_address(model.layer).hybrid
    )
    assert hybrid.head.raw == 0
    check_low_rank(hybrid.decay, narrow, low_rank.NOTHING)
    assert hybrid.rate.down == 0


def _parts(blocks: dict[str, Any], handed: list[tuple[bytes, ...]], **more: Any) -> Any:
    """The state heads' block of a model of one layer."""
    decay = more.pop("decay", None)
    state = _state_weights(torch.randn(32, 12), **more)
    if decay is not None:
        weights = state.weights._replace(decay=decay, rate=None, head=HeadWeights())
        state = state._replace(weights=weights)
    none, numbers = token_arguments.NO_CONVOLUTIONS, (0.0,) * 5
    layer = token_arguments.LayerWeights(*_layer_tensors(), none, numbers, state)
    call = model_token.make([layer], token_arguments.FinalNorm(torch.randn(12), 5e-5), 16, 3)
    assert call is not None
    KEPT.append(call)
    keys = torch.randn(3, 2, 9, 16)
    rotation = (torch.randn(3, 1, 16), torch.randn(3, 1, 16))
    call(torch.randn(3, 1, 12), rotation, None, [token_arguments.LayerCache(keys, keys)])
    model = read(blocks["TokenModel"], handed[0][0])
    return blocks["StateParts"].from_address(blocks["TokenLayer"].from_address(model.layer).parts)


#: Blocks whose memory is looked into.
KEPT: list[Any] = []


def test_a_models_cache(blocks: dict[str, Any]) -> None:
    keys, values = torch.randn(3, 2, 400, 16)[:, :, :300], torch.randn(3, 2, 400, 16)[:, :, :300]
    states = [torch.randn(1) for _ in range(6)]
    cache = token_arguments.LayerCache(keys, values, *states)
    found = read(blocks["TokenCache"], cache.block())
    assert (found.key, found.value) == (keys.data_ptr(), values.data_ptr())
    assert (found.tokens, found.sequence, found.head) == (300, 2 * 400 * 16, 400 * 16)
    names = ("state", "final_state", "carry", "last", "shift_carry", "shift_last")
    assert [getattr(found, x) for x in names] == [x.data_ptr() for x in states]
    convolved = tuple(torch.randn(1) for _ in range(12))
    found = read(blocks["TokenCache"], cache._replace(convolutions=convolved).block())
    pairs = [*found.state_conv, *found.attention_conv]
    assert [n for x in pairs for n in (x.before, x.after)] == [x.data_ptr() for x in convolved]
    found = read(blocks["TokenCache"], token_arguments.LayerCache(None, None, *states).block())
    assert (found.key, found.tokens, found.state) == (0, 0, states[0].data_ptr())
