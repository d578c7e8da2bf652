"""Registering the architecture with transformers' Auto classes.

``import wuneng`` registers everything, and so does naming a model class of ``wuneng.model``. The
command line does it where it loads something through an Auto class. Registering again is harmless.
"""

from __future__ import annotations


def register_configuration() -> None:
    """For ``AutoConfig``, which ``AutoTokenizer`` asks too when a directory holds a model."""
    from transformers import AutoConfig

    from wuneng.model.configuration import WuNengConfig

    AutoConfig.register("wuneng", WuNengConfig, exist_ok=True)


def register_models() -> None:
    """For ``AutoModel`` and ``AutoModelForCausalLM``, and the configuration as well."""
    from transformers import AutoModel, AutoModelForCausalLM

    from wuneng.model.configuration import WuNengConfig
    from wuneng.model.modeling import WuNengForCausalLM, WuNengModel

    register_configuration()
    AutoModel.register(WuNengConfig, WuNengModel, exist_ok=True)
    AutoModelForCausalLM.register(WuNengConfig, WuNengForCausalLM, exist_ok=True)
