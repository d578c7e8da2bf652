"""The causal language model: configuration, modules, cache, counting.

Importing this package registers the architecture with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from wuneng.model.cache import WuNengCache
from wuneng.model.configuration import WuNengConfig
from wuneng.model.modeling import WuNengForCausalLM, WuNengModel
from wuneng.model.settings import from_settings

AutoConfig.register("wuneng", WuNengConfig, exist_ok=True)
AutoModel.register(WuNengConfig, WuNengModel, exist_ok=True)
AutoModelForCausalLM.register(WuNengConfig, WuNengForCausalLM, exist_ok=True)

__all__ = ["WuNengCache", "WuNengConfig", "WuNengForCausalLM", "WuNengModel", "from_settings"]
