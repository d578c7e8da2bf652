"""Operators: RWKV-7's state heads and the WKV-7 recurrence, whatever backend runs them.

state_head              a state head as a whole: token shift, recurrence, readout
wkv7_from_projections   the recurrence from a head's raw projections, without shift and readout
recurrence_inputs       its keys: k~, a and b of keys and in-context rate
wkv7, wkv7_step         the recurrence itself, over sequences and for one token
rms_norm                a block's norm
cross_head              what mixes attention's heads with what the state read
"""

from wuneng.ops.backend import using
from wuneng.ops.cross_head import cross_head
from wuneng.ops.head_arguments import HeadInputs, HeadOptions, HeadOutputs, HeadWeights, LinearPair
from wuneng.ops.low_rank import LowRank, head_projections, low_rank
from wuneng.ops.rms_norm import rms_norm
from wuneng.ops.state_head.from_projections import ProjectedScan, wkv7_from_projections
from wuneng.ops.state_head.interface import state_head
from wuneng.ops.state_head.recurrence_inputs import recurrence_inputs
from wuneng.ops.token_shift import last_token, previous_token, token_shift
from wuneng.ops.wkv7 import Recurrence, Snapshots, wkv7, wkv7_step

__all__ = [
    "HeadInputs",
    "HeadOptions",
    "HeadOutputs",
    "HeadWeights",
    "LinearPair",
    "LowRank",
    "ProjectedScan",
    "Recurrence",
    "Snapshots",
    "cross_head",
    "head_projections",
    "last_token",
    "low_rank",
    "previous_token",
    "recurrence_inputs",
    "rms_norm",
    "state_head",
    "token_shift",
    "using",
    "wkv7",
    "wkv7_from_projections",
    "wkv7_step",
]
