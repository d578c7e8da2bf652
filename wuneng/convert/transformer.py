"""Transformer to WuNeng: the source's tensors under their own names, new heads beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.architectures import plain_fields
from wuneng.convert.conversion import Conversion, same_function
from wuneng.convert.donor import Donor, open_donor
from wuneng.convert.fused import SplitTensors
from wuneng.convert.graft import GraftSettings, NewTensors, grafted_config
from wuneng.convert.plan import (
    EMBEDDING,
    kept_routes,
    main_dtype,
    make_plan,
    model_shapes,
    ties_its_head,
)
from wuneng.convert.source import Located, open_tensors
from wuneng.convert.stacked import ExpertsTogether
from wuneng.convert.tensor_files import TensorSource
from wuneng.errors import InputError, ModelError
from wuneng.limits import LIMITS
from wuneng.model import WuNengConfig

__all__ = ["check_sizes", "from_transformer"]

#: What a model without state heads says of them, which is nobody's choice.
_STATE_FIELDS = (
    *("num_state_heads", "state_layers", "state_head_dim", "cross_head", "state_kind"),
    *("state_options", "state_a_max", "state_output_gate", "state_gate_sigmoid"),
)


def from_transformer(
    located: Located,
    graft: GraftSettings,
    *,
    dtype: torch.dtype | None,
    seed: int,
    state_from: str | None = None,
    new_apart: bool = False,
) -> Conversion:
    """A Transformer of a known family (or a WuNeng without state heads), with heads added.

    Args:
        dtype: of the destination; None keeps the source's.
        seed: of the new parameters' initial values.
        state_from: an RWKV-7 that the state heads start from.
        new_apart: whether new tensors get a file of their own, beside those of the source.

    Raises:
        ModelError: configuration or weights are broken or do not belong together.
        InputError: the heads asked for do not fit the model.
    """
    source: TensorSource = open_tensors(located)
    fields = _plain_fields(located)
    check_sizes(fields, source, str(located.path))
    if located.family is not None and located.family.has_experts:
        source = ExpertsTogether(source)
    if located.family is not None and located.family.fused:
        shapes = model_shapes(grafted_config(fields, GraftSettings(state_heads=0)))
        source = SplitTensors(source, located.family.fused, lambda name: shapes.get(name, (0,)))
    # A checkpoint that stores two different embeddings means both, whatever its configuration
    # says: transformers loads it so.
    tied = fields["tie_word_embeddings"] and ties_its_head(source)
    config = grafted_config(
        fields,
        graft,
        tie_word_embeddings=tied,
        converted_from=fields.get("converted_from", located.kind),
        architectures=["WuNengForCausalLM"],
    )
    target = dtype or main_dtype(source)
    wanted = model_shapes(config)
    routes, dropped = kept_routes(source, wanted)
    make: Callable[[str], Tensor] = NewTensors(config, target, seed).make
    donor = None if state_from is None else open_donor(state_from, config)
    if donor is not None:
        make = donor.wrap(make)
    plan = make_plan(
        source, routes, dropped, dtype=dtype, wanted=wanted, new=make, new_apart=new_apart
    )
    return same_function(
        located,
        f"{located.kind} to wuneng",
        config,
        plan,
        target,
        counted=config,
        details=lambda: {"seed": seed, "state_from": None if donor is None else donor.record()},
        notes=_notes(donor),
    )


def check_sizes(fields: Any, source: TensorSource, where: str) -> None:
    """Refuse a configuration whose sizes the files belie, or that no model has, before anything is
    built from it."""
    layers = fields["num_hidden_layers"]
    if layers > len(source.tensors):
        raise ModelError(
            f"{where}: num_hidden_layers is {layers:,}, but the files hold only "
            f"{len(source.tensors)} tensors"
        )
    info = source.tensors.get(EMBEDDING)
    expected = (fields["vocab_size"], fields["hidden_size"])
    if info is not None and info.shape != expected:
        raise ModelError(
            f"{info.file}: {EMBEDDING} has shape {list(info.shape)}; vocab_size and hidden_size "
            f"make it {list(expected)}"
        )
    for name, limits in LIMITS.items():
        value = fields.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and (problem := limits.problem(value)):
            raise ModelError(f"{where}: the configuration does not make a model: {name} {problem}")


def _plain_fields(located: Located) -> dict[str, Any]:
    where = str(located.path / "config.json")
    if located.family is not None and not located.is_wuneng:
        return plain_fields(located.config, located.family, where)
    try:
        config = WuNengConfig.from_dict(dict(located.config))
    except Exception as error:
        raise ModelError(f"{where}: not a usable WuNeng configuration: {error}") from error
    if config.num_state_heads:
        raise InputError(f"{located.label} has state heads already; none can be added")
    dropped = (*_STATE_FIELDS, "architectures", "dtype", "model_type", "transformers_version")
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in (*dropped, "auto_map")
    }


def _notes(donor: Donor | None) -> list[str]:
    if donor is None:
        return []
    return [
        f"state heads start from {donor.label}: a warm start, not an equivalence. Its first heads "
        "and the leading part of its low-rank factors are copied; the new branch is still silent, "
        "so the logits are the source's."
    ]
