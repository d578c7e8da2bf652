"""Operators: the WKV-7 recurrence behind one interface, whatever backend runs it."""

from wuneng.ops.wkv7 import Snapshots, wkv7, wkv7_step

__all__ = ["Snapshots", "wkv7", "wkv7_step"]
