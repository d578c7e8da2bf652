"""How heads of two kinds share a layer, without other packages: the benchmark asks as well."""

from __future__ import annotations

__all__ = ["replaced_heads"]


def replaced_heads(total: int, states: int) -> tuple[int, int]:
    """State heads in the place of some of ``total`` attention heads, and how many are left.

    Where there are as many state heads as attention heads, or more, half of the attention heads are
    replaced: an arm of one kind of heads would be ``rwkv7``. No state heads: nothing to replace.
    """
    if states < total:
        return states, total - states
    # Middle heads group both kinds evenly; one head groups with any number.
    fitting = (s for s in range(total // 2, 0, -1) if (total - s) % s == 0)
    replaced = next(fitting, 0)
    return replaced, total - replaced
