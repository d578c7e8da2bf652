"""The quantities, each with its definition. Arithmetic is float64 throughout.

A state head's recurrence over one text is (:func:`wuneng.ops.wkv7`)

    S_t = S_{t-1} diag(exp w_t) + (S_{t-1} a_t^T) b_t + v_t^T k_t          S_0 = 0

Legend: T tokens, S state heads, M = S middle heads, H attention heads, N head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.layers.recurrence_watch import HalfLife, half_life, in_context_rate

__all__ = [
    "HalfLife",
    "StatePath",
    "effective_rank",
    "entropy",
    "half_life",
    "in_context_rate",
    "state_path",
    "state_share",
]


def effective_rank(S: Tensor) -> Tensor:
    """exp of the entropy of the normalised singular values (Roy and Vetterli, 2007).

    1 for a matrix of rank one, N for N equal singular values, 0 for zero.

    Args:
        S: ``[.., N, N]``.
    """
    values = torch.linalg.svdvals(S.double())
    total = values.sum(-1, keepdim=True)
    share = values / total.where(total > 0, 1.0)
    return torch.special.entr(share).sum(-1).exp().where(total[..., 0] > 0, 0.0)


@dataclass(frozen=True)
class StatePath:
    """How a layer's states move.

    Attributes:
        places: tokens read, at which ``norm`` and ``rank`` are taken, P of them.
        norm: Frobenius norm of S, ``[P, S]``.
        rank: :func:`effective_rank` of S, ``[P, S]``.
        turn: cosine between S_t and S_{t-1}, ``[T, S]``: 1 where a token leaves the direction as it
            is, -1 where it turns it around; 0 where one of the two is zero.
        coordinate: first principal component of the path S_1 .. S_T, ``[T, S]``, divided by its
            largest absolute value and not below 0 at the end: where the state is on the line that
            it moves along most. A state that flips jumps from one side to the other.
        coordinate_share: of the path's variance, ``[S]``.
    """

    places: list[int]
    norm: Tensor
    rank: Tensor
    turn: Tensor
    coordinate: Tensor
    coordinate_share: Tensor

    @property
    def flips(self) -> Tensor:
        """Tokens at which the coordinate changes its sign, ``[S]`` int64."""
        side = self.coordinate.sign()
        return (side[1:] * side[:-1] < 0).sum(0)


def state_path(inputs: Sequence[Tensor], places: Sequence[int]) -> StatePath:
    """Follow the states of a text, one head after the other: T N^2 numbers are held at once.

    Args:
        inputs: r, w, k, v, a, b, ``[T, S, N]`` each.
        places: numbers of tokens, from 1 to T.
    """
    _, *fed = (x.double() for x in inputs)
    wanted = sorted(set(places))
    at = torch.tensor(wanted) - 1
    columns = []
    for head in range(fed[0].shape[1]):
        path = _states(*(x[:, head] for x in fed))
        before = torch.cat([torch.zeros_like(path[:1]), path[:-1]])
        norm, rank = torch.linalg.matrix_norm(path[at]), effective_rank(path[at])
        columns.append((norm, rank, _cosine(path, before), *_coordinate(path)))
    stacked = (torch.stack(x, dim=-1) for x in zip(*columns, strict=True))
    return StatePath(wanted, *stacked)


def _states(w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """S after each token, ``[T, N, N]``, of one head's inputs ``[T, N]``."""
    S = torch.zeros(v.shape[-1], v.shape[-1], dtype=v.dtype)
    path = []
    for t in range(len(v)):
        S = S * w[t].exp() + torch.outer(S @ a[t], b[t]) + torch.outer(v[t], k[t])
        path.append(S)
    return torch.stack(path)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    lengths = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    along = (first * second).sum((-1, -2))
    return (along / lengths.where(lengths > 0, 1.0)).where(lengths > 0, 0.0)


def _coordinate(path: Tensor) -> tuple[Tensor, Tensor]:
    """``[T]`` and its share of the variance, from the inner products of all pairs of states."""
    centred = (path - path.mean(0)).flatten(1)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    total = values.clamp_min(0).sum()
    if not total > 0:  # it never moves
        return torch.zeros_like(vectors[:, -1]), torch.zeros_like(total)
    first = vectors[:, -1]
    first = first / first.abs().max() * (-1.0 if first[-1] < 0 else 1.0)
    return first, values[-1] / total


def state_share(from_attention: Tensor, from_state: Tensor) -> Tensor:
    """How much of a middle head comes from the state, ``[M]``, between 0 and 1.

    Mid is a sum of a term in attention's heads and a term in R; this is the energy (sum of squares
    over tokens and channels) of the second, divided by that of both.

    Args:
        from_attention, from_state: the two terms, ``[T, M, N]``.
    """
    attention, state = (x.double().square().sum((0, 2)) for x in (from_attention, from_state))
    return state / (attention + state)


def entropy(weights: Tensor) -> Tensor:
    """Entropy of attention in nats, ``[T, H]``: -sum p ln p over what each token looks at.

    0 looks at one token; ln n is spread evenly over n.

    Args:
        weights: probabilities ``[H, T, T]``, queries by keys.
    """
    return torch.special.entr(weights.double()).sum(-1).T
