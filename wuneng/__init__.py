"""WuNeng: RWKV-7 state heads beside softmax attention, and honest comparisons with plain attention.

``import wuneng`` registers the architecture with transformers, so that
``AutoModelForCausalLM.from_pretrained(directory)`` loads a WuNeng checkpoint. The command line
imports this package for its light rooms (recipes, records) first; it registers later, when a
command needs a model, so that ``wuneng --help`` does not pay for importing torch.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wuneng.model import WuNengCache, WuNengConfig, WuNengForCausalLM, WuNengModel

__version__ = "0.1.0"
__all__ = ["WuNengCache", "WuNengConfig", "WuNengForCausalLM", "WuNengModel", "__version__"]

_MODEL_NAMES = ("WuNengCache", "WuNengConfig", "WuNengForCausalLM", "WuNengModel")


def __getattr__(name: str) -> Any:
    if name in _MODEL_NAMES:
        import wuneng.model

        return getattr(wuneng.model, name)
    raise AttributeError(f"module 'wuneng' has no attribute {name!r}")


if "wuneng_cli" not in sys.modules:
    from wuneng.model.auto_classes import register_models

    register_models()
