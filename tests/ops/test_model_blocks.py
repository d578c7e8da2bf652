"""What Python packs of a model for a decoded token's one call is what the C header says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from tests.ops.native_blocks import MIDDLE, WEIGHTS, check_cross_head, check_low_rank, read
from wuneng.ops.head_arguments import HeadOptions, HeadWeights
from wuneng.ops.low_rank import native as low_rank
from wuneng.ops.native import hybrid_token, model_token, token_arguments


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
    return tensors + [torch.randn(n) for n in (20, 20, 12)]


def test_a_models_token(
    blocks: dict[str, Any], handed: list[tuple[bytes, ...]], repository: Path
) -> None:
    """Two layers, the second with S 2 state heads; B 3."""
    tensors, numbers = _layer_tensors(), (1e-5, 2e-5, 3e-5, 4e-5, 0.25)
    own = [torch.randn(32, 12) for _ in range(3)]
    state = _state_weights(own[2], own_key=own[0], own_value=own[1])
    layers = [token_arguments.LayerWeights(*tensors, numbers, x) for x in (None, state)]
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
    for name, x in zip(token_arguments.LayerWeights._fields[:20], tensors, strict=True):
        assert [getattr(layer, name) for layer in found] == [x.data_ptr()] * 2, name
    for layer in found:
        names = ("input_eps", "q_eps", "k_eps", "feed_eps", "scaling")
        assert tuple(getattr(layer, x) for x in names) == numbers
    assert (found[0].hybrid, found[0].parts) == (0, 0)
    parts = blocks["StateParts"].from_address(found[1].parts)
    assert (parts.own_key, parts.own_value) == tuple(x.data_ptr() for x in own[:2])
    assert [parts.mix_r, parts.gate.down, parts.residual.down] == [0, 0, 0]
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
    kept: list[Any] = [None if n in range(1, 13) else x for n, x in enumerate(_layer_tensors())]
    mixtures = tuple(torch.randn(12) for _ in token_arguments.MIXED)
    gate, residual = (torch.randn(12, 6), torch.randn(6, 32)), WEIGHTS[1]
    state = _state_weights(torch.randn(32, 12), mixtures=mixtures, gate=gate, residual=residual)
    layers = [token_arguments.LayerWeights(*kept, (0.0,) * 5, state) for _ in range(2)]
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
        numbers = (one.gate.tokens, one.gate.size, one.gate.rank, one.gate.width, one.gate.between)
        assert numbers == (3, 12, 6, 32, low_rank.SIGMA)
        tensors = (one.gate.down, one.gate.up, one.gate.bias)
        assert tensors == (*(x.data_ptr() for x in gate), 0)
    assert parts[0].residual.down == 0
    check_low_rank(parts[1].residual, residual, low_rank.NOTHING)


def test_a_models_cache(blocks: dict[str, Any]) -> None:
    keys, values = torch.randn(3, 2, 400, 16)[:, :, :300], torch.randn(3, 2, 400, 16)[:, :, :300]
    states = [torch.randn(1) for _ in range(6)]
    cache = token_arguments.LayerCache(keys, values, *states)
    found = read(blocks["TokenCache"], cache.block())
    assert (found.key, found.value) == (keys.data_ptr(), values.data_ptr())
    assert (found.tokens, found.sequence, found.head) == (300, 2 * 400 * 16, 400 * 16)
    names = ("state", "final_state", "carry", "last", "shift_carry", "shift_last")
    assert [getattr(found, x) for x in names] == [x.data_ptr() for x in states]
    found = read(blocks["TokenCache"], token_arguments.LayerCache(None, None, *states).block())
    assert (found.key, found.tokens, found.state) == (0, 0, states[0].data_ptr())
