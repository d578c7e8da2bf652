"""WuNeng to WuNeng: another dtype, or an exported directory back without its code."""

from __future__ import annotations

import torch

from wuneng.convert.conversion import Conversion, same_function
from wuneng.convert.plan import Plan, kept_routes, main_dtype, make_plan, model_shapes
from wuneng.convert.source import Located, open_tensors
from wuneng.convert.tensor_files import TensorSource
from wuneng.convert.transformer import check_sizes
from wuneng.errors import ModelError
from wuneng.model import WuNengConfig

__all__ = ["read_config", "same_tensors", "to_wuneng"]


def to_wuneng(located: Located, *, dtype: torch.dtype | None) -> Conversion:
    """The model in ``located`` written anew, without any code that travelled with it.

    Raises:
        ModelError: configuration or weights are broken or do not belong together.
    """
    source = open_tensors(located)
    config = read_config(located, source)
    target = dtype or main_dtype(source)
    plan = same_tensors(source, config, dtype)
    return same_function(located, "wuneng to wuneng", config, plan, target, counted=config)


def read_config(located: Located, source: TensorSource) -> WuNengConfig:
    """The configuration of a WuNeng directory, without references to code files.

    Raises:
        ModelError: it is not usable, or its sizes are not those of the files.
    """
    where = str(located.path / "config.json")
    fields = {name: value for name, value in located.config.items() if name != "auto_map"}
    layers = fields.get("num_hidden_layers")
    if isinstance(layers, int) and layers > len(source.tensors):
        raise ModelError(
            f"{where}: num_hidden_layers is {layers:,}, but the files hold only "
            f"{len(source.tensors)} tensors"
        )
    try:
        config: WuNengConfig = WuNengConfig.from_dict(fields)
        check_sizes(config.to_dict(), source, where)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{where}: not a usable WuNeng configuration: {error}") from error
    config.architectures = ["WuNengForCausalLM"]
    return config


def same_tensors(source: TensorSource, config: WuNengConfig, dtype: torch.dtype | None) -> Plan:
    """Every tensor under its own name; none may be missing or left over."""
    wanted = model_shapes(config)
    routes, dropped = kept_routes(source, wanted)
    return make_plan(source, routes, dropped, dtype=dtype, wanted=wanted)
