"""State heads in attention's place, in a share of the layers (RADLADS, arXiv 2505.03005).

While it trains, such a layer still holds its attention, frozen: the silent model, from which align
and distill stages learn, is the source with all of it. What is saved is without.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wuneng.model import WuNengConfig
from wuneng.model.branch_way import replace_attention

if TYPE_CHECKING:
    from wuneng.model import WuNengForCausalLM

__all__ = ["begin_replacing", "replaced_layers", "without_attention", "without_attention_config"]


def replaced_layers(share: float, layers: Sequence[int]) -> tuple[int, ...]:
    """A ``share`` of ``layers``, at least one, spread evenly and ending with the last: the first
    layers, whose attention is hardest to do without, are the last to go."""
    count = max(1, round(share * len(layers)))
    return tuple(layers[(n + 1) * len(layers) // count - 1] for n in range(count))


def begin_replacing(model: nn.Module, layers: Collection[int]) -> None:
    """Put the branches of ``layers`` in attention's place, in place.

    Where heads are as many and as large as attention's, they start from its weights: receptance
    from queries, keys and values from their own (each group's for all of its heads), the output
    from attention's.
    """
    replace_attention(model, layers)
    for block in model.modules():
        if getattr(block, "branch_way", None) is not None and block.layer_idx in layers:
            _take_over(block)


@torch.no_grad()
def _take_over(block: Any) -> None:
    attention, heads = block.self_attn, block.state_heads
    branch = block.cross_head.branch_proj.weight
    if branch.shape != attention.o_proj.weight.shape:
        return
    branch.copy_(attention.o_proj.weight)
    heads.r_proj.weight.copy_(attention.q_proj.weight)
    for name in ("k_proj", "v_proj"):
        getattr(heads, name).weight.copy_(_for_every_head(attention, name))


def _for_every_head(attention: Any, name: str) -> Tensor:
    """Keys' or values' projection, a group's rows repeated for each of its heads."""
    weight: Tensor = getattr(attention, name).weight
    groups = weight.unflatten(0, (-1, attention.head_dim))
    return groups.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)


def without_attention_config(config: WuNengConfig, layers: Collection[int]) -> WuNengConfig:
    """The configuration of what is saved: no attention in ``layers``."""
    kinds = [
        "state" if layer in layers else config.layer_kind(layer)
        for layer in range(config.num_hidden_layers)
    ]
    changes: dict[str, Any] = {"layers": kinds, "state_layers": None}
    if config.sliding_window_layers is not None:
        kept = [layer for layer in config.sliding_window_layers if layer not in layers]
        changes["sliding_window_layers"] = kept
    if set(kinds) == {"state"}:
        changes |= {"layers": None, "num_attention_heads": 0, "sliding_window_layers": None}
    return config.changed(changes)


def without_attention(model: WuNengForCausalLM, layers: Collection[int]) -> WuNengForCausalLM:
    """``model`` without what ``layers`` no longer ask; it shares all other weights."""
    from wuneng.model import WuNengForCausalLM

    config = without_attention_config(copy.deepcopy(model.config), layers)
    with torch.device("meta"):
        smaller = WuNengForCausalLM(config)
    wanted = dict(smaller.named_parameters(remove_duplicate=False))
    kept = {name: value for name, value in model.state_dict().items() if name in wanted}
    smaller.load_state_dict(kept, strict=True, assign=True)
    if hasattr(smaller.model, "rotary_emb"):
        smaller.model.rotary_emb = model.model.rotary_emb  # its frequencies are no parameters
    return smaller
