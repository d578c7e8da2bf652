"""What the operators' C kernels share, where the machine has a compiler.

Each kernel lies beside its operator (``state_head/``, ``cross_head/``, ``low_rank/``). Here is what
belongs to all of them: building and loading one library (``compiler``, ``library_cache``), when a
few tokens take it (``few_tokens``), their vectors and exponentials (``vectors.h``,
``exponentials.h``), and the call that chains them for a decoded token of a layer
(``hybrid_token``).
"""

from wuneng.ops.native.compiler import library

__all__ = ["library"]
