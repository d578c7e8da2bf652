"""Middle heads mix attention and state: the contract of a kind, and the branch's output.

The abstract of arXiv 2504.19191 names concatenation, additive modulation and gated fusion; the
formulas of the kinds are **our reading** of it, and each can be chosen or switched off in a recipe.

A^g is each group's mean of attention heads under a learned mix, RMS-normalised; R arrives
normalised by the state heads (their magnitudes differ: arXiv 2411.13676). A kind makes Mid of the
two, and may change A. The block adds ``[lambda * R; Mid] W_branch`` to attention's own ``A' W_o``.

A kind is a class in a file of its own, :func:`wuneng.kinds.register`-ed under the file's name. Its
plain :meth:`MiddleHeads.formula` is what runs. Only a kind that names an ``operator`` is given to
:func:`wuneng.ops.cross_head`, whose fast paths compute that formula and no other.

Legend: H attention heads, S state heads, M = S middle heads, N head size, D model width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init

from wuneng.kinds import load_kind
from wuneng.layers.norms import HeadRMSNorm
from wuneng.layers.output_projection import initialise_output
from wuneng.layers.plain_modules import is_matrix, is_plain, is_weight
from wuneng.ops import cross_head
from wuneng.ops.cross_head import cross_head_reference, grouped_heads


class MiddleHeads(nn.Module):
    """Mixes R with attention's heads and projects what is new back to the model's width."""

    #: Parameters of a kind's own that tokens are multiplied with, by the last part of their name:
    #: they count two operations per weight.
    matrices: ClassVar[frozenset[str]] = frozenset()
    #: Optimiser treatment by the last part of a name, where the rule for all models is not right.
    groups: ClassVar[Mapping[str, str]] = {}
    #: As those of ``wuneng.layers.state.base.StateHeads``.
    computed_past_call: ClassVar[tuple[str, ...]] = ("interaction", "_scaled", "operator_weights")
    #: Which formula of :func:`wuneng.ops.cross_head` this kind's is, to the letter; None: none.
    operator: ClassVar[str | None] = None
    #: Whether it may see a piece of a sequence (:mod:`wuneng.ops.context`): its formula is of one
    #: token at a time. Not inherited: a class says so itself.
    context_parallel: ClassVar[bool] = False
    #: Whether there is something in the middle: [lambda * R; Mid], or lambda * R alone.
    mixes: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """What a class computes in its own way is no operator's, unless it says so itself."""
        super().__init_subclass__(**kwargs)
        own = {"formula", "forward", "interaction"} & cls.__dict__.keys()
        if own and "operator" not in cls.__dict__:
            cls.operator = None

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kind = type(self)
        heads, dim = config.num_state_heads, config.state_head_dim
        self.heads, self.head_dim = heads, dim
        self.attention_heads = config.num_attention_heads
        scales = heads if config.state_output_scale == "head" else 1
        self.scale = nn.Parameter(torch.ones(scales))
        if self.mixes:
            self.group_size = max(1, self.attention_heads // heads)
            self.group_mix = nn.Parameter(torch.empty(heads, self.group_size))
            self.group_norm = HeadRMSNorm(heads, dim, config.rms_norm_eps)
        self.add_weights()
        branches = 2 if self.mixes else 1
        self.branch_proj = nn.Linear(branches * heads * dim, config.hidden_size, bias=False)

    def add_weights(self) -> None:
        """Register the kind's own parameters."""

    def initialise_weights(self, config: Any) -> None:
        """Give them their initial values."""

    def formula(self, A: Tensor, grouped: Tensor, R: Tensor) -> tuple[Tensor, Tensor]:
        """The kind's equation.

        Args:
            A: attention's heads ``[B, T, H, N]``.
            grouped: A^g ``[B, T, S, N]``, normalised.
            R: what the state heads read ``[B, T, S, N]``.

        Returns:
            A' ``[B, T, H, N]`` and Mid ``[B, T, S, N]``.
        """
        raise NotImplementedError

    def operator_weights(self) -> tuple[Tensor, Tensor | None]:
        """The kind's one or two weights, as the ``operator`` takes them."""
        raise NotImplementedError

    def initialise(self, config: Any) -> None:
        """Initial values; with a ``branch_init`` of zero the branch adds nothing at first."""
        init.ones_(self.scale)
        initialise_output(self.branch_proj, config.branch_init, config)
        if self.mixes:
            init.constant_(self.group_mix, 1 / self.group_size)
        self.initialise_weights(config)

    def forward(self, attention: Tensor | None, state: Tensor) -> tuple[Tensor | None, Tensor]:
        """Mix.

        Args:
            attention: A ``[B, T, H * N]``, None without attention heads.
            state: R ``[B, T, S, N]``.

        Returns:
            A' ``[B, T, H * N]`` for attention's output projection, and the branch's own
            contribution to the residual stream ``[B, T, D]``.
        """
        if not self.mixes or attention is None:
            return attention, self.branch_proj(self._scaled(state).flatten(-2))
        attention, branch = self.interaction(attention, state)
        return attention, self.branch_proj(branch)

    def interaction(
        self, attention: Tensor, state: Tensor, backend: str | None = None
    ) -> tuple[Tensor, Tensor]:
        """A' ``[B, T, H * N]`` and ``[lambda * R; Mid]`` ``[B, T, 2 * S * N]``, not projected."""
        A = attention.unflatten(-1, (self.attention_heads, self.head_dim))
        norm = self.group_norm
        if self.operator is None:
            grouped = norm(grouped_heads(A, self.group_mix, self.heads))
            A, middle = self.formula(A, grouped, state)
            parts = [self._scaled(state).flatten(-2), middle.flatten(-2)]
            return A.flatten(-2), torch.cat(parts, dim=-1)
        mixed = (self.operator, A, state, self.scale, self.group_mix)
        weights = self.operator_weights()
        if not is_plain(norm, HeadRMSNorm):
            return cross_head_reference(*mixed, None, *weights, 0.0, normalise=norm)
        return cross_head(*mixed, norm.weight, *weights, eps=norm.eps, backend=backend)

    def _scaled(self, state: Tensor) -> Tensor:
        return state * self.scale[:, None].to(state.dtype)

    def can_be_read(self) -> bool:
        """Whether this is nothing but its weights, which an operator knows what to do with: nobody
        watched or replaced a part."""
        return (
            self.operator is not None
            and is_plain(self, self.kind)
            and is_matrix(self.branch_proj)
            and is_weight(self.group_norm, HeadRMSNorm)
        )

    def token_weights(self) -> tuple[Any, ...]:
        """Scale, mix, norm, the kind's two and the branch, as a decoded token's call takes them.

        For a module that :meth:`can_be_read`. Without middle heads those of theirs are None.
        """
        return (
            self.scale,
            self.group_mix,
            self.group_norm.weight,
            *self.operator_weights(),
            self.branch_proj.weight,
        )


def make_middle_heads(config: Any, layer_idx: int) -> MiddleHeads:
    """The middle heads of a layer with state heads; of the kind ``none`` without attention."""
    name = config.cross_head if config.has_attention(layer_idx) else "none"
    made: MiddleHeads = load_kind("middle", name)(config)
    return made
