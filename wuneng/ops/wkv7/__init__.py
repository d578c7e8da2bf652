"""WKV-7: RWKV-7's state recurrence, its gradients, its backends and its one-token step.

Reading order: ``reference`` (the recurrence, token by token: the oracle), ``snapshots`` (which
earlier states a token may read), ``step`` (decoding), ``decays`` (how long a chunk may be),
``segments`` and ``packing`` (sequences onto chunks), ``chunk_algebra`` and ``chunk_backward`` (a
stretch of chunks in matrix form), ``chunk_scan`` (from chunk to chunk), ``snapshot_table``,
``chunk_passes`` (whole forward, whole backward), ``chunked`` (registration with torch),
``interface`` (checks and dispatch). The ``triton_*`` files are the fused kernels, ``fla`` another
project's.
"""

from wuneng.ops.wkv7.interface import Recurrence, wkv7, wkv7_step
from wuneng.ops.wkv7.snapshots import Snapshots

__all__ = ["Recurrence", "Snapshots", "wkv7", "wkv7_step"]
