"""The causal language model: configuration, modules, cache, counting.

Naming a model class registers the architecture with transformers' Auto classes (``auto_classes``).
The configuration and the counting alone do not: planning a run needs no model, and importing what
transformers' models are made of takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wuneng.model.configuration import WuNengConfig
from wuneng.model.settings import from_settings

if TYPE_CHECKING:
    from wuneng.model.cache import WuNengCache
    from wuneng.model.modeling import WuNengForCausalLM, WuNengModel

__all__ = ["WuNengCache", "WuNengConfig", "WuNengForCausalLM", "WuNengModel", "from_settings"]


def __getattr__(name: str) -> Any:
    if name in ("WuNengForCausalLM", "WuNengModel"):
        from wuneng.model import modeling
        from wuneng.model.auto_classes import register_models

        register_models()
        return getattr(modeling, name)
    if name == "WuNengCache":
        from wuneng.model.cache import WuNengCache

        return WuNengCache
    raise AttributeError(f"module 'wuneng.model' has no attribute {name!r}")
