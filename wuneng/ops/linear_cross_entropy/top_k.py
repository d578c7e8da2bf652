"""A distribution cut to its k likeliest tokens and one bucket for the rest, and the KL from it.

With K the k likeliest tokens of the teacher at temperature tau and r the bucket of all others,

    KL = tau^2 mean_t [ sum_{v in K} p_v (log p_v - log q_v)  +  p_r (log p_r - log q_r) ]

    p_r = sum_{v not in K} p_v         q_r = sum_{v not in K} q_v

which is the KL between the two distributions over k + 1 outcomes. It is never more than the full
KL (merging outcomes loses information) and equals it where k is the whole vocabulary. Its gradient
for a logit of the arm is q_v - p_v in K and q_v (1 - p_r / q_r) outside, each times tau: within the
rest the arm keeps its own proportions. Without the bucket the k probabilities would have to be
scaled up to sum to one, and the arm would learn to be surer than its teacher: the bias of top-k
that Anshumann et al. show (arXiv 2503.16870). Of how the teacher divides the rest, nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wuneng.ops.linear_cross_entropy.reference import at_least_float32

__all__ = ["TopK", "top_k_distillation", "top_k_of"]


@dataclass(frozen=True)
class TopK:
    """Of each position the k likeliest tokens, at a temperature."""

    tokens: Tensor
    """``[..., k]`` integers."""
    log_probabilities: Tensor
    """``[..., k]`` floating, of these tokens."""
    log_rest: Tensor
    """``[...]`` floating, of all others together; minus infinity where there are none."""

    def at(self, positions: Tensor | slice) -> TopK:
        """Those of some positions, given as a mask ``[...]`` or, of flat ones, as a slice."""
        parts = self.tokens, self.log_probabilities, self.log_rest
        return TopK(*(part[positions] for part in parts))


def top_k_of(logits: Tensor, k: int, temperature: float) -> TopK:
    """The k likeliest of ``logits`` ``[..., V]``, without a graph; in at least float32."""
    softened = at_least_float32(logits.detach()) / temperature
    whole = softened.logsumexp(-1)
    values, tokens = softened.topk(k, dim=-1)
    rest = softened.scatter(-1, tokens, -torch.inf).logsumexp(-1)
    return TopK(tokens, values - whole[..., None], rest - whole)


def top_k_distillation(
    logits: Tensor, kept: TopK, labels: Tensor, ignored: int, temperature: float
) -> Tensor:
    """``[2]``: the KL above and the cross-entropy, both summed over scored positions.

    Args:
        logits: ``[..., V]`` of the arm.
        kept: of the teacher; rounded ones are brought to a sum of one again.
        labels: ``[...]``, the token that each position predicts; ``ignored``: not scored.
    """
    scored = labels != ignored
    own, kept, wanted = at_least_float32(logits[scored]), kept.at(scored), labels[scored]
    known = torch.cat([kept.log_probabilities, kept.log_rest[:, None]], dim=-1).to(own.dtype)
    log_p = known.log_softmax(-1)
    softened = own if temperature == 1.0 else own / temperature
    tokens = kept.tokens.long()
    whole = softened.logsumexp(-1)
    log_q = softened.gather(-1, tokens) - whole[:, None]
    divergence = (log_p[:, :-1].exp() * (log_p[:, :-1] - log_q)).sum()
    if tokens.shape[-1] < own.shape[-1]:
        log_q_rest = softened.scatter(-1, tokens, -torch.inf).logsumexp(-1) - whole
        divergence = divergence + (log_p[:, -1].exp() * (log_p[:, -1] - log_q_rest)).sum()
    entropy = (own.logsumexp(-1) - own.gather(-1, wanted[:, None])[:, 0]).sum()
    return torch.stack([temperature**2 * divergence, entropy])
