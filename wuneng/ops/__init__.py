"""Operators: the WKV-7 recurrence behind one interface, whatever backend runs it."""

from wuneng.ops.state_inputs import state_inputs
from wuneng.ops.token_shift import token_shift
from wuneng.ops.wkv7 import Snapshots, wkv7, wkv7_step

__all__ = ["Snapshots", "state_inputs", "token_shift", "wkv7", "wkv7_step"]
