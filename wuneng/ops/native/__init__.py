"""State heads on a CPU in C, where the machine has a compiler."""

from wuneng.ops.native.compiler import library
from wuneng.ops.native.operator import is_available, run

__all__ = ["is_available", "library", "run"]
