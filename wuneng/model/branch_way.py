"""What becomes of the branch of state and middle heads while an upgraded model is trained.

A block without a :class:`BranchWay` adds its branch to attention. With one it may

    be silent       the branch is left out: the model is the Transformer that it was made of
    be watched      the branch is computed beside the silent model and shown with what it is asked
                    for, and is not added: every layer sees the Transformer's own activations
    replace         the branch stands in attention's place, which is not computed, or in that of
                    some of its heads, whose output is left out

Legend: B batch, T tokens, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from wuneng.layers.attention import AttentionHeads

__all__ = ["BranchWay", "branch_ways", "replace_attention", "silenced"]

#: Of a layer's number, what its branch says and what it is asked for, ``[B, T, D]`` each.
Watch = Callable[[int, Tensor, Tensor], None]


@dataclass
class BranchWay:
    """Of one layer; a watch counts while the layer is in training mode."""

    replaces: bool = False
    kept: int = 0
    """Where it replaces: leading channels of what attention's heads say that stay."""
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
        return not self.kept and self._stands_in(block)

    def _stands_in(self, block: nn.Module) -> bool:
        return self.replaces and not self.silent and not self.is_watched(block)

    def left_of(self, block: nn.Module, heads: AttentionHeads) -> AttentionHeads:
        """Of attention's heads those that are not replaced; the others say nothing."""
        if not self._stands_in(block):
            return heads
        return replace(heads, output=self._kept_of(heads.output))

    def _kept_of(self, attended: Tensor) -> Tensor:
        """``[B, T, H * N]``, zero from the first replaced head on."""
        return F.pad(attended[..., : self.kept], (0, attended.shape[-1] - self.kept))

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
            asked, beside = attention, None
            if self.kept:
                beside = block.self_attn.o_proj(self._kept_of(attended))
            if self.whole_layer:
                asked = _whole_layer(block, hidden, attention, rest)
            elif beside is not None:
                asked = attention - beside
        said = branch
        if self.whole_layer and self.replaces:
            whole = branch if beside is None else beside + branch
            said = _whole_layer(block, hidden, whole, rest)
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


def replace_attention(model: nn.Module, layers: Collection[int], kept: int = 0) -> None:
    """From now on the branches of ``layers`` stand in the place of attention, or of its heads from
    channel ``kept`` on."""
    ways = branch_ways(model)
    for layer in layers:
        ways[layer].replaces, ways[layer].kept = True, kept


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
