"""What becomes of the branch of state and middle heads while an upgraded model is trained.

A block without a :class:`BranchWay` adds its branch to attention. With one it may

    be silent       the branch is left out: the model is the Transformer that it was made of
    be watched      the branch is computed beside the silent model and shown with what it is asked
                    for, and is not added: every layer sees the Transformer's own activations
    replace         the branch stands in attention's place, which is not computed

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BranchWay", "branch_ways", "replace_attention", "silenced"]

#: Of a layer's number, what its branch says and what it is asked for, ``[B, T, D]`` each.
Watch = Callable[[int, Tensor, Tensor], None]


@dataclass
class BranchWay:
    """Of one layer; a watch counts while the layer is in training mode."""

    replaces: bool = False
    silent: bool = False
    watch: Watch | None = None
    whole_layer: bool = False
    """Asked for is what the whole layer adds to the residual stream, not attention alone."""

    def is_silent(self, block: nn.Module) -> bool:
        """Whether the branch is not computed: also where what learns aside is scored meanwhile."""
        learns_aside = self.watch is not None and not self.replaces
        return self.silent or (learns_aside and not block.training)

    def is_watched(self, block: nn.Module) -> bool:
        """Whether the branch is only shown."""
        return self.watch is not None and not self.silent and block.training

    def skips_attention(self, block: nn.Module) -> bool:
        """Whether nobody reads what attention makes of this layer."""
        return self.replaces and not self.silent and not self.is_watched(block)

    def shown(
        self, block: Any, hidden: Tensor, attended: Tensor, branch: Tensor, rest: Any
    ) -> Tensor:
        """Show the branch to the watch.

        Args:
            hidden: the layer's input ``[B, T, D]``.
            attended: what attention's own heads say, before their output projection.
            branch: what the branch says ``[B, T, D]``.
            rest: what the feed-forward layer takes besides its input.

        Returns:
            What attention says, ``[B, T, D]``: the silent model goes on with it.
        """
        with torch.no_grad():
            attention: Tensor = block.self_attn.o_proj(attended)
            asked = attention
            if self.whole_layer:
                asked = _whole_layer(block, hidden, attention, rest)
        said = branch
        if self.whole_layer and self.replaces:
            said = _whole_layer(block, hidden, branch, rest)
        assert self.watch is not None
        self.watch(block.layer_idx, said, asked)
        return attention


def _whole_layer(block: Any, hidden: Tensor, said: Tensor, rest: Any) -> Tensor:
    """What a layer adds to ``hidden`` where its heads say ``said``, ``[B, T, D]`` each."""
    added: Tensor = block.from_heads(said)
    fed: Tensor = block.from_feed_forward(hidden + added, *rest)
    return added + fed


def branch_ways(model: nn.Module) -> dict[int, BranchWay]:
    """The ways of all layers that have a branch beside attention, by their number; each is made
    where there is none yet."""
    found = {}
    for block in model.modules():
        both = getattr(block, "state_heads", None), getattr(block, "self_attn", None)
        if not hasattr(block, "branch_way") or None in both:
            continue
        if block.branch_way is None:
            block.branch_way = BranchWay()  # type: ignore[assignment]
        found[int(block.layer_idx)] = block.branch_way  # type: ignore[arg-type]
    return found  # type: ignore[return-value]


def replace_attention(model: nn.Module, layers: Collection[int]) -> None:
    """From now on the branches of ``layers`` stand in attention's place."""
    ways = branch_ways(model)
    for layer in layers:
        ways[layer].replaces = True


@contextmanager
def silenced(model: nn.Module) -> Iterator[None]:
    """The Transformer that ``model`` was made of: without branches and LoRA adapters, in
    evaluation mode. Its other weights are the model's, as they are now."""
    ways, training = list(branch_ways(model).values()), model.training
    adapters = [
        m for m in model.modules() if hasattr(m, "lora_A") and hasattr(m, "enable_adapters")
    ]
    model.eval()
    for way in ways:
        way.silent = True
    for adapter in adapters:
        _switch(adapter, on=False)
    try:
        yield
    finally:
        for adapter in adapters:
            _switch(adapter, on=True)
        for way in ways:
            way.silent = False
        model.train(training)


def _switch(adapter: Any, *, on: bool) -> None:
    """As peft's ``enable_adapters``, which would decide anew what requires gradients."""
    adapter._disable_adapters = not on
