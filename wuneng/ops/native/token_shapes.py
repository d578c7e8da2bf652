"""Whether the weights of a decoded token's call have the shapes that C takes them for.

torch broadcasts what C would read beyond its end. Legend: D model width, H attention, G key/value
and S state heads, N head size, F inner width of the feed-forward layer, K taps.
"""

from __future__ import annotations

from collections.abc import Iterator

from wuneng.ops.native.delta_arguments import DeltaWeights
from wuneng.ops.native.head_shapes import Wanted, are_so, of_heads, of_pair
from wuneng.ops.native.token_arguments import Convolutions, LayerWeights, StateWeights

__all__ = ["have_their_shapes"]


def have_their_shapes(layer: LayerWeights, sizes: tuple[int, int, int, int, int]) -> bool:
    """Whether every tensor of a layer has its shape.

    Args:
        sizes: D, H * N, G * N, F, N.
    """
    wanted = [*_layer(layer, sizes)]
    if layer.state is not None:
        wanted += _state(layer.state, sizes[0])
    return are_so(wanted)


def _layer(layer: LayerWeights, sizes: tuple[int, int, int, int, int]) -> Iterator[Wanted]:
    width, queries, keys, inner, size = sizes
    one = (layer.input_norm, layer.feed_norm, layer.o_bias, layer.down_bias)
    yield from ((x, (width,)) for x in one)
    yield from ((layer.q, (queries, width)), (layer.q_bias, (queries,)))
    yield from ((x, (keys, width)) for x in (layer.k, layer.v))
    of_keys = (layer.k_bias, layer.v_bias, layer.k_shift, layer.v_shift)
    yield from ((x, (keys,)) for x in of_keys)
    yield from ((layer.o, (width, queries)), (layer.output_gate, (queries, width)))
    yield from ((x, (size,)) for x in (layer.q_norm, layer.k_norm))
    yield from ((x, (inner, width)) for x in (layer.gate, layer.up))
    yield from (
        (layer.down, (width, inner)),
        (layer.gate_bias, (inner,)),
        (layer.up_bias, (inner,)),
    )
    yield from _convolutions(layer.conv, (queries, keys, keys))


def _convolutions(weights: Convolutions, channels: tuple[int, int, int]) -> Iterator[Wanted]:
    yield from ((x, (n, -1)) for x, n in zip(weights, channels, strict=True))


def _state(state: StateWeights, width: int) -> Iterator[Wanted]:
    heads, size = state.options.head.heads, state.options.head.size
    own = heads * size
    yield from of_heads(state.weights, state.options, width)
    yield from ((x, (own, width)) for x in (state.own_key, state.own_value))
    yield from ((x, (width,)) for x in state.mixtures)
    for pair in (state.gate, state.residual):
        yield from of_pair(pair, width, own)
    yield from _convolutions(state.conv, (own, own, own))
    if state.delta is not None:
        yield from _delta(state.delta, heads, size, width)


def _delta(delta: DeltaWeights, heads: int, size: int, width: int) -> Iterator[Wanted]:
    yield from ((x, (heads, width)) for x in (delta.beta, delta.step))
    yield (delta.log_rate, (heads,))
    yield (delta.step_bias, (heads * size if delta.step is None else heads,))
    yield from ((delta.norm, (heads, size)), (delta.gate, (heads * size, width)))
    yield from ((x, (heads * size,)) for x in delta.shift)
