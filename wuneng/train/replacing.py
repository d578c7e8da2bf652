"""State heads in attention's place, in a share of the layers (RADLADS, arXiv 2505.03005), or of a
share of the heads of every layer.

While it trains, such a layer still holds its attention, frozen: the silent model, from which align
and distill stages learn, is the source with all of it. What is saved is without.

Of heads whole groups go, with their keys and values: the last ones, so that what stays are leading
rows and columns of attention's matrices.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from wuneng.errors import RecipeError
from wuneng.model import WuNengConfig
from wuneng.model.branch_way import replace_attention

if TYPE_CHECKING:
    from wuneng.model import WuNengForCausalLM

__all__ = [
    "begin_replacing",
    "kept_heads",
    "replaced_layers",
    "without_attention",
    "without_attention_config",
]


def replaced_layers(share: float, layers: Sequence[int]) -> tuple[int, ...]:
    """A ``share`` of ``layers``, at least one, spread evenly and ending with the last: the first
    layers, whose attention is hardest to do without, are the last to go."""
    count = max(1, round(share * len(layers)))
    return tuple(layers[(n + 1) * len(layers) // count - 1] for n in range(count))


def kept_heads(share: float, config: WuNengConfig, field: str) -> int:
    """How many attention heads stay in every layer where a ``share`` of them is replaced: whole
    groups, at least one, and at least one goes.

    Raises:
        RecipeError: the model cannot be without some of its heads.
    """
    groups = config.num_key_value_heads or 0
    alone = [i for i in range(config.num_hidden_layers) if config.layer_kind(i) == "attention"]
    gone, wrong = max(1, round(share * groups)), None
    if alone:
        wrong = (
            f"layer {alone[0]} has no state heads and would keep all of its attention heads, "
            "of which a model has the same number in every layer"
        )
    elif groups < 2:
        wrong = f"expected two groups of heads or more, of which one can stay, got {groups}"
    elif gone >= groups:
        wrong = f"a share of {share} leaves none of {groups} groups; replace layers for that"
    elif config.qk_norm and config.qk_norm_over == "width":
        wrong = "the norm of queries and keys runs over all heads, and would be another over some"
    elif config.attention_short_conv:
        wrong = "attention's short convolution mixes queries, keys and values of all heads"
    elif config.attention_output_gate:
        wrong = "attention's output gate is one matrix over all heads"
    if wrong is not None:
        raise RecipeError(f"{field}: heads: {wrong}")
    return (groups - gone) * config.num_attention_heads // groups


def begin_replacing(model: nn.Module, layers: Collection[int], kept: int = 0) -> None:
    """Put the branches of ``layers`` in the place of attention, or of its heads but the first
    ``kept``, in place.

    Where state heads are as many and as large as those that go, they start from their weights:
    receptance from queries, keys and values from their own (each group's for all of its heads), the
    output from attention's.
    """
    blocks: list[Any] = [m for m in model.modules() if hasattr(m, "branch_way")]
    for block in blocks:
        if block.layer_idx in layers:
            channels = kept * block.self_attn.head_dim
            replace_attention(model, [block.layer_idx], channels)
            _take_over(block, channels)


@torch.no_grad()
def _take_over(block: Any, kept: int) -> None:
    """``kept``: channels of attention's heads that stay."""
    attention, heads = block.self_attn, block.state_heads
    branch = block.cross_head.branch_proj.weight
    output, queries = attention.o_proj.weight[:, kept:], attention.q_proj.weight[kept:]
    if branch.shape != output.shape or heads.r_proj.weight.shape != queries.shape:
        return
    branch.copy_(output)
    heads.r_proj.weight.copy_(queries)
    for name in ("k_proj", "v_proj"):
        getattr(heads, name).weight.copy_(_for_every_head(attention, name)[kept:])


def _for_every_head(attention: Any, name: str) -> Tensor:
    """Keys' or values' projection, a group's rows repeated for each of its heads."""
    weight: Tensor = getattr(attention, name).weight
    groups = weight.unflatten(0, (-1, attention.head_dim))
    return groups.repeat_interleave(attention.num_key_value_groups, dim=0).flatten(0, 1)


def without_attention_config(
    config: WuNengConfig, layers: Collection[int], kept: int = 0
) -> WuNengConfig:
    """The configuration of what is saved: no attention in ``layers``, or ``kept`` heads of it."""
    if kept:
        a_group = config.num_attention_heads // (config.num_key_value_heads or 1)
        sizes = {"num_attention_heads": kept, "num_key_value_heads": kept // a_group}
        return config.changed(sizes)
    kinds = [
        "state" if layer in layers else config.layer_kind(layer)
        for layer in range(config.num_hidden_layers)
    ]
    changes: dict[str, Any] = {"layers": kinds, "state_layers": None}
    if config.sliding_window_layers is not None:
        slide = [layer for layer in config.sliding_window_layers if layer not in layers]
        changes["sliding_window_layers"] = slide
    if set(kinds) == {"state"}:
        changes |= {"layers": None, "num_attention_heads": 0, "sliding_window_layers": None}
    return config.changed(changes)


def without_attention(
    model: WuNengForCausalLM, layers: Collection[int], kept: int = 0
) -> WuNengForCausalLM:
    """``model`` without what ``layers`` no longer ask; it shares all other weights."""
    from wuneng.model import WuNengForCausalLM

    config = without_attention_config(copy.deepcopy(model.config), layers, kept)
    with torch.device("meta"):
        smaller = WuNengForCausalLM(config)
    wanted = dict(smaller.named_parameters(remove_duplicate=False))
    stays = {
        name: _leading(value, wanted[name].shape)
        for name, value in model.state_dict().items()
        if name in wanted
    }
    smaller.load_state_dict(stays, strict=True, assign=True)
    if hasattr(smaller.model, "rotary_emb"):
        smaller.model.rotary_emb = model.model.rotary_emb  # its frequencies are no parameters
    return smaller


def _leading(value: Tensor, shape: torch.Size) -> Tensor:
    """The first rows and columns of ``value``, as many as ``shape`` has; a copy where not all."""
    if value.shape == shape:
        return value
    return value[tuple(slice(0, size) for size in shape)].clone()
