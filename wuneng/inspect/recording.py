"""One forward call over one text, watched: what every layer's heads were fed and made of it.

Nothing stays on the model afterwards. State heads are watched where their recurrence runs
(``StateHeads.recurrence``), middle heads and attention by hooks on their modules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.inspect.quantities import entropy, state_share
from wuneng.layers.middle.additive import Additive
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.middle.concat import Concat
from wuneng.layers.middle.gated import Gated
from wuneng.layers.recurrence_watch import recurrence_watched
from wuneng.model.block import WuNengBlock
from wuneng.model.finite import NotFinite, all_finite
from wuneng.ops.cross_head import grouped_heads

__all__ = ["LayerRecord", "MiddleRecord", "record"]


@dataclass
class MiddleRecord:
    """A layer's middle heads.

    Attributes:
        kind: as ``cross_head`` names it.
        gate: 1 - g, the weight of the state in gated fusion, ``[T, M]``: mean over channels. None
            where the kind has no gate.
        share: :func:`wuneng.inspect.quantities.state_share` ``[M]``; None where the kind is not a
            sum of the two.
    """

    kind: str
    gate: Tensor | None = None
    share: Tensor | None = None


@dataclass
class LayerRecord:
    """What one layer did.

    Attributes:
        state_kind: None without state heads.
        inputs: r, w, k, v, a, b ``[T, S, N]`` of the recurrence; empty without state heads, or
            where the kind does not run ``StateHeads.recurrence``.
        middle: None without middle heads.
        entropy: of attention ``[T, H]``; None without attention heads.
        window: sliding window of its attention, if there is one.
    """

    layer: int
    state_kind: str | None = None
    inputs: list[Tensor] = field(default_factory=list)
    middle: MiddleRecord | None = None
    entropy: Tensor | None = None
    window: int | None = None


@torch.no_grad()
def record(model: Any, tokens: Tensor) -> list[LayerRecord]:
    """Run a WuNeng model over a text.

    Args:
        tokens: ids ``[T]``.

    Returns:
        A record for each layer; none for a model of another class.

    Raises:
        NotFinite: its logits are NaN or infinite.
    """
    blocks = [module for module in model.modules() if isinstance(module, WuNengBlock)]
    records = []
    with ExitStack() as stack:
        for block in blocks:
            found = LayerRecord(int(block.layer_idx))
            records.append(found)
            if block.state_heads is not None:
                found.state_kind = block.state_heads.config.state_kind
                see = partial(_keep_inputs, found)
                stack.enter_context(recurrence_watched(block.state_heads, see))
                if block.self_attn is not None and block.cross_head.mixes:  # type: ignore[union-attr]
                    found.middle = MiddleRecord(block.state_heads.config.cross_head)
                    hook = partial(_watch_middle, found.middle)
                    stack.callback(block.cross_head.register_forward_hook(hook).remove)  # type: ignore[union-attr]
            if block.self_attn is not None:
                found.window = block.self_attn.sliding_window
                hook = partial(_watch_attention, found)
                stack.callback(block.self_attn.register_forward_hook(hook).remove)
        if blocks:
            stack.enter_context(_explicit_attention(model))
            logits = model(tokens[None].to(model.device), use_cache=False).logits
            if not all_finite(logits):
                raise NotFinite(0, tokens)
    return records


@contextmanager
def _explicit_attention(model: Any) -> Iterator[None]:
    """Attention whose probabilities can be seen."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _keep_inputs(found: LayerRecord, inputs: Sequence[Tensor]) -> None:
    found.inputs = [_wide(x[0]) for x in inputs]


def _watch_attention(found: LayerRecord, module: nn.Module, inputs: Any, output: Any) -> Any:
    heads, weights = output
    if weights is not None:
        found.entropy = entropy(_wide(weights[0]))
    return heads, None  # T x T numbers a head that nobody else needs


def _watch_middle(
    found: MiddleRecord, module: MiddleHeads, inputs: tuple[Tensor, Tensor], output: Any
) -> None:
    """The two terms of Mid, once more from the module's inputs and weights, in float64."""
    A = inputs[0].unflatten(-1, (module.attention_heads, module.head_dim))
    grouped = _wide(module.group_norm(grouped_heads(A, module.group_mix, module.heads)))
    R = _wide(inputs[1])
    if isinstance(module, Gated):
        both = torch.cat([grouped, R], dim=-1)
        logit = torch.einsum("btsi,sij->btsj", both, _wide(module.gate_weight))
        g = torch.sigmoid(logit + _wide(module.gate_bias))
        found.gate = (1 - g).mean(-1)[0]
        terms = g * grouped, (1 - g) * R
    elif isinstance(module, Additive):
        terms = grouped, _wide(module.beta) * R
    elif isinstance(module, Concat):
        upper, lower = _wide(module.mid_weight).chunk(2, dim=1)
        terms = (
            torch.einsum("btsi,sij->btsj", grouped, upper),
            torch.einsum("btsi,sij->btsj", R, lower),
        )
    else:
        return
    found.share = state_share(terms[0][0], terms[1][0])


def _wide(x: Tensor) -> Tensor:
    """In float64 on the CPU: not every device has it."""
    return x.detach().cpu().double()
