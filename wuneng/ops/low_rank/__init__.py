"""Low-rank projections with a bias: ``interface`` in torch, ``native`` a few tokens in C."""

from wuneng.ops.low_rank.interface import LowRank, head_projections, low_rank

__all__ = ["LowRank", "head_projections", "low_rank"]
