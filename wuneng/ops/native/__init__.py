"""State heads on a CPU in C, where the machine has a compiler."""

from wuneng.ops.native.compiler import library, torch_instead
from wuneng.ops.native.operator import is_available, run

__all__ = ["is_available", "library", "run", "torch_instead"]
