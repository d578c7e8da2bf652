"""Rooflines: the bytes and FLOPs that a piece of work needs at least, counted from shapes.

Bytes: every input read once and every output written once, in the type that is benchmarked.
FLOPs: those of the algorithm as it is written on paper; a kernel that computes more in order to
use matrix units, or computes something twice, is not credited for it. So a share of the roof says
how far a case is from what *any* implementation would need, and none reaches 1.

Letters: B batch, T tokens, H heads, N head size, G groups of heads, D model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from wuneng.bench.machine import Rates

if TYPE_CHECKING:
    from wuneng.model import WuNengConfig

__all__ = [
    "Work",
    "attention",
    "attention_step",
    "decode",
    "fusion",
    "kda",
    "prefill",
    "ssd",
    "ssd_step",
    "training_step",
    "wkv7",
    "wkv7_step",
]

_STATE_BYTES = 4  # the state is float32 whatever the inputs are


@dataclass(frozen=True)
class Work:
    """The least that has to be moved and computed."""

    bytes: float
    flops: float

    def bound(self, rates: Rates) -> str:
        """``memory`` or ``compute``: which takes longer at the machine's rates."""
        by_memory = self.bytes / rates.bandwidth >= self.flops / rates.matmul
        return "memory" if by_memory else "compute"

    def floor_seconds(self, rates: Rates) -> float:
        """Seconds below which the machine's own rates do not allow."""
        return max(self.bytes / rates.bandwidth, self.flops / rates.matmul)


def wkv7(batch: int, tokens: int, heads: int, size: int, element: int, *, backward: bool) -> Work:
    """The recurrence over a sequence from a zero state.

    Forward: six inputs and y, 8 N^2 FLOPs per token and head (decay, removal, write, read).
    Backward: six inputs and dy in, six gradients out; twice the forward's FLOPs.
    """
    tensor = batch * tokens * heads * size * element
    flops = 8.0 * size**2 * batch * tokens * heads
    state = batch * heads * size**2 * _STATE_BYTES
    if not backward:
        return Work(7.0 * tensor + state, flops)
    return Work((7.0 + 13.0) * tensor + 2 * state, 3 * flops)


def wkv7_step(batch: int, heads: int, size: int, element: int) -> Work:
    """One token: the state is read and written once."""
    state = batch * heads * size**2 * _STATE_BYTES
    vectors = 7 * batch * heads * size * element
    return Work(2.0 * state + vectors, 8.0 * size**2 * batch * heads)


def kda(batch: int, tokens: int, heads: int, size: int, element: int, *, backward: bool) -> Work:
    """Kimi Delta Attention over a sequence from a zero state: WKV-7's FLOPs from four inputs and a
    rate a head."""
    tensor = batch * tokens * heads * size * element
    rate = batch * tokens * heads * element
    state = batch * heads * size**2 * _STATE_BYTES
    flops = 8.0 * size**2 * batch * tokens * heads
    if not backward:
        return Work(5.0 * tensor + rate + state, flops)
    return Work((5.0 + 9.0) * tensor + 3 * rate + 2 * state, 3 * flops)


def ssd(
    batch: int, tokens: int, heads: int, size: int, groups: int, element: int, *, backward: bool
) -> Work:
    """Mamba-2's recurrence over a sequence from a zero state of N x N a head.

    Forward: x, dt, and B and C (of G groups) in, y out, 6 N^2 FLOPs per token and head (decay,
    write, read). Backward: inputs and dy in, their gradients out; twice the forward's FLOPs.
    """
    tensor = batch * tokens * heads * size * element
    shared = batch * tokens * groups * size * element
    rate = batch * tokens * heads * element
    state = batch * heads * size**2 * _STATE_BYTES
    flops = 6.0 * size**2 * batch * tokens * heads
    if not backward:
        return Work(2.0 * tensor + 2 * shared + rate + state, flops)
    return Work((2.0 + 3.0) * tensor + (2 + 4) * shared + (1 + 2) * rate + 2 * state, 3 * flops)


def ssd_step(batch: int, heads: int, size: int, groups: int, element: int) -> Work:
    """One token: the state is read and written once."""
    state = batch * heads * size**2 * _STATE_BYTES
    vectors = batch * (2 * heads * size + 2 * groups * size + heads) * element
    return Work(2.0 * state + vectors, 6.0 * size**2 * batch * heads)


def attention(
    batch: int, tokens: int, heads: int, size: int, element: int, *, backward: bool
) -> Work:
    """Causal softmax attention: half of all pairs, 4 N FLOPs each; the backward twice that."""
    tensor = batch * tokens * heads * size * element
    flops = 4.0 * size * batch * heads * tokens * (tokens + 1) / 2
    if not backward:
        return Work(4.0 * tensor, flops)
    return Work((4.0 + 8.0) * tensor, 3 * flops)


def attention_step(batch: int, context: int, heads: int, size: int, element: int) -> Work:
    """One query against ``context`` keys and values."""
    cache = 2.0 * batch * context * heads * size * element
    return Work(cache + 2 * batch * heads * size * element, 4.0 * size * batch * heads * context)


def fusion(config: WuNengConfig, batch: int, tokens: int, element: int) -> Work:
    """Cross-head interaction, forward and backward: A and R in, A' and the branch out."""
    state_width = config.num_state_heads * (config.state_head_dim or 0)
    branches = 1 if config.cross_head == "none" else 2
    weights = branches * state_width * config.hidden_size
    if config.cross_head in ("gated", "concat"):
        weights += 2 * state_width * (config.state_head_dim or 0)
    attention_width = config.num_attention_heads * (config.head_dim or 0)
    forward = attention_width + state_width + config.hidden_size
    if config.cross_head == "additive":
        forward += attention_width
    # the backward reads the inputs and the outputs' gradients and writes the inputs' gradients
    elements = batch * tokens * (forward + forward + attention_width + state_width)
    return Work((elements + 2.0 * weights) * element, 3 * 2.0 * batch * tokens * weights)


def prefill(config: WuNengConfig, parameters: int, batch: int, tokens: int, element: int) -> Work:
    """All tokens through the model, logits of the last one: weights read, the cache written."""
    from wuneng.model.counting import forward_flops_per_token

    head = 2.0 * config.vocab_size * config.hidden_size
    flops = batch * (tokens * (forward_flops_per_token(config, tokens) - head) + head)
    from wuneng.model.cache_bytes import cache_bytes

    cache = cache_bytes(config, batch, tokens, element)
    return Work(parameters * element + cache["kv_bytes"] + cache["state_bytes"], flops)


def decode(config: WuNengConfig, parameters: int, batch: int, context: int, element: int) -> Work:
    """One token: weights and KV read, the state read and written."""
    from wuneng.model.cache_bytes import cache_bytes
    from wuneng.model.counting import forward_flops_per_token

    cache = cache_bytes(config, batch, context, element)
    # the last token of a causal sequence of 2 n + 1 sees what an average one of it sees, n + 1
    flops = batch * forward_flops_per_token(config, 2 * context + 1)
    moved = parameters * element + cache["kv_bytes"] + 2 * cache["state_bytes"]
    return Work(moved, flops)


def training_step(config: WuNengConfig, parameters: int, batch: int, tokens: int) -> Work:
    """Forward, backward and AdamW in float32.

    Weights are read twice, gradients written once, and the optimiser reads weight, gradient and
    two moments and writes weight and moments: ten numbers a parameter. Activations are left out:
    how often they must move depends on the size of the cache.
    """
    from wuneng.model.counting import training_flops_per_token

    flops = batch * tokens * training_flops_per_token(config, tokens)
    return Work(10.0 * 4 * parameters, flops)


def describe(rates: Rates) -> dict[str, Any]:
    """The roof for bench.json: rates, and the intensity (FLOPs per byte) where they meet."""
    return {**rates.to_json(), "ridge_flops_per_byte": rates.matmul / rates.bandwidth}


#: How an operator's least work is counted from (batch, tokens, heads, size, element).
OperatorWork = Callable[[int, int, int, int, int], Work]
