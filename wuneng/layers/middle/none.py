"""No middle heads: the branch is lambda * R alone."""

from __future__ import annotations

from wuneng.kinds import register
from wuneng.layers.middle.base import MiddleHeads


@register("middle", "none")
class NoMiddleHeads(MiddleHeads):
    """State heads beside attention, without anything that mixes the two."""

    mixes = False
    context_parallel = True
