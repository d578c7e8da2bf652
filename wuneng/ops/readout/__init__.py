"""From what the state read to what a state head hands on: group norm, bonus and gate.

``reference`` (the equations), ``by_hand`` (torch, forward and backward), ``triton_kernels`` (CUDA),
``interface`` (who computes).
"""

from wuneng.ops.readout.interface import state_readout
from wuneng.ops.readout.reference import state_readout_reference

__all__ = ["state_readout", "state_readout_reference"]
