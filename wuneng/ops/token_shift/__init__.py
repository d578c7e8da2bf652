"""Token shift: each token mixed with the one before it, in whole sequences and across calls.

``reference`` (the equation), ``by_hand`` (torch, forward and backward), ``triton_kernels`` (CUDA),
``interface`` (who computes); ``previous_token`` for packed documents and calls that go on.
"""

from wuneng.ops.token_shift.interface import token_shift
from wuneng.ops.token_shift.previous_token import last_token, previous_token
from wuneng.ops.token_shift.reference import token_shift_reference

__all__ = ["last_token", "previous_token", "token_shift", "token_shift_reference"]
