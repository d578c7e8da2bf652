"""Operators: RWKV-7's state heads and the WKV-7 recurrence, whatever backend runs them."""

from wuneng.ops.backend import using
from wuneng.ops.cross_head import cross_head
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadOutputs, HeadWeights
from wuneng.ops.low_rank import LowRank, head_projections, low_rank
from wuneng.ops.state_head.from_projections import StateMix, state_mix
from wuneng.ops.state_head.interface import state_head
from wuneng.ops.state_head.recurrence_inputs import state_inputs
from wuneng.ops.token_shift import last_token, previous_token, token_shift
from wuneng.ops.wkv7 import Recurrence, Snapshots, wkv7, wkv7_step

__all__ = [
    "HeadInputs",
    "HeadOptions",
    "HeadOutputs",
    "HeadWeights",
    "LowRank",
    "Recurrence",
    "Snapshots",
    "StateMix",
    "cross_head",
    "head_projections",
    "last_token",
    "low_rank",
    "previous_token",
    "state_head",
    "state_inputs",
    "state_mix",
    "token_shift",
    "using",
    "wkv7",
    "wkv7_step",
]
