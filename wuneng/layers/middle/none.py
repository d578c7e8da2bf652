"""No middle heads: the branch is lambda * R alone."""

from __future__ import annotations

from typing import Any

from wuneng.kinds import register
from wuneng.layers.middle.base import MiddleHeads
from wuneng.layers.plain_modules import is_matrix, is_plain


@register("middle", "none")
class NoMiddleHeads(MiddleHeads):
    """State heads beside attention, without anything that mixes the two."""

    mixes = False
    context_parallel = True

    def can_be_read(self) -> bool:
        return is_plain(self, NoMiddleHeads) and is_matrix(self.branch_proj)

    def token_weights(self) -> tuple[Any, ...]:
        return (self.scale, None, None, None, None, self.branch_proj.weight)
