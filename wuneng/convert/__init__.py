"""``wuneng convert``: checkpoints of other architectures into WuNeng and back, proved on logits.

Reading order: ``run`` (the request and who serves it), ``conversion`` (writing, proving, renaming),
``transformer``, ``pure_state``, ``export`` and ``distributed`` (the directions), ``architectures``,
``rwkv7`` and ``unsupported`` (what checkpoints mean), ``plan``, ``tensor_files``, ``shard_writer``
(their bytes), ``probe``, ``comparison`` and ``verify`` (the proof), ``upgrade`` (what a recipe
starts from).
"""

from wuneng.convert.comparison import Check, VerificationError
from wuneng.convert.conversion import Outcome
from wuneng.convert.graft import GraftSettings
from wuneng.convert.run import Request, convert
from wuneng.convert.upgrade import ConvertedSources

__all__ = [
    "Check",
    "ConvertedSources",
    "GraftSettings",
    "Outcome",
    "Request",
    "VerificationError",
    "convert",
]
