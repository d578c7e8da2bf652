"""What one layer's state heads are given: projections, per-channel weights and settings.

Legend: B batch, T tokens, S state heads, N head size. Equations: :mod:`wuneng.ops.state_head`.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LowRank(NamedTuple):
    """Weights of bias + middle(x down) up: ``[D, rank]``, ``[rank, C]``, ``[C]`` or None."""

    down: Tensor
    up: Tensor
    bias: Tensor | None


class LinearPair(NamedTuple):
    """The same of two of torch's ``Linear``: ``[rank, D]``, ``[C, rank]``, ``[C]`` or None."""

    down: Tensor
    up: Tensor
    bias: Tensor | None


class HeadInputs(NamedTuple):
    """Projections of the tokens, before any token shift, ``[B, T, S * N]`` each.

    Attributes:
        r: receptance.
        w: logit of the decay; log decay = -e^{-1/2} sigma(w).
        k, v: keys and values; they may hold more than S heads, of which the first S are used.
        a: logit of the in-context learning rate.
        b: what the removal key is made of; None for the (shifted) key.
        gate: multiplies the output; None for no gate.
    """

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor | None = None
    gate: Tensor | None = None


class HeadWeights(NamedTuple):
    """Per-channel weights, ``[S * N]`` or ``[S, N]`` each; None switches off what they are for.

    Attributes:
        mu_r, mu_k, mu_v: token shift of r, k, v.
        k_k, k_a: of the removal and the replacement key.
        bonus: r_k, weight of the present token's own value.
        norm_weight, norm_bias: group norm of what is read.
    """

    mu_r: Tensor | None = None
    mu_k: Tensor | None = None
    mu_v: Tensor | None = None
    k_k: Tensor | None = None
    k_a: Tensor | None = None
    bonus: Tensor | None = None
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None


#: What :func:`wuneng.ops.cross_head` mixes: A, R, scale, group_mix, group_norm, alpha_or_matrix and
#: beta_or_bias.
MiddleTensors = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]


class HeadOptions(NamedTuple):
    """What is not a tensor.

    Attributes:
        heads, size: S and N.
        raw: w, a, b are as :class:`HeadInputs` says; False: they are the log decay and the two
            vectors a, b of :func:`wuneng.ops.wkv7`.
        a_max: upper end of the in-context learning rate.
        norm_eps: of the group norm.
        letters: the order in which a carry holds the shifted projections, of "rkv".
    """

    heads: int
    size: int
    raw: bool = True
    a_max: float = 1.0
    norm_eps: float = 0.0
    letters: str = ""


#: What state heads are called with: inputs, weights, options, and state and carry, or None.
HeadCall = tuple[HeadInputs, HeadWeights, HeadOptions, Tensor | None, Tensor | None]


class HeadOutputs(NamedTuple):
    """What the operator returns.

    Attributes:
        readout: R ``[B, T, S, N]`` in v's dtype.
        state: after the last token, ``[B or sequences, S, N_value, N_key]`` float32 (float64).
        carry: for the next call, ``[sequences, len(letters) * S * N]``; None unless asked for.
        ring: of snapshots, ``[sequences, n, S, N, N]``; None without them.
    """

    readout: Tensor
    state: Tensor
    carry: Tensor | None = None
    ring: Tensor | None = None
