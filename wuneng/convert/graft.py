"""The tensors that a conversion adds: state and middle heads, at values that change no logit.

The branch's output projection starts at zero (and additive modulation's alpha too), everything
before it at its ordinary initial value, so that gradients reach it from the first step.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from wuneng.default_wiring import MIDDLE_WIRING
from wuneng.errors import InputError
from wuneng.kinds import check_kind, load_kind
from wuneng.layers.middle.base import make_middle_heads
from wuneng.model import WuNengConfig
from wuneng.model.initialisation import initialise

__all__ = ["GraftSettings", "NewTensors", "grafted_config", "is_grafted_name", "layer_of"]

_GRAFTED = re.compile(r"model\.layers\.(\d+)\.(state_heads\.|cross_head\.|self_attn\.shift_)")


@dataclass(frozen=True)
class GraftSettings:
    """What to add to a Transformer. None leaves a choice to :func:`grafted_config`.

    Attributes:
        state_heads: S, state heads in a layer; 0 adds nothing.
        state_kind: of :func:`wuneng.kinds.kind_names`; None is ``rwkv7``.
        state_layers: which layers get them; None is all.
        state_head_dim: N of the state heads; None is the attention heads' own.
        cross_head: ``gated``, ``concat``, ``additive`` or ``none``.
        snapshots: earlier states that a state head reads besides the present one.
        key_source: ``attention`` or ``own``.
        value_source: ``attention``, ``attention_output`` or ``own``.
        others: further fields of WuNengConfig that concern state heads, by name.
    """

    state_heads: int | None = None
    state_kind: str | None = None
    state_layers: tuple[int, ...] | None = None
    state_head_dim: int | None = None
    cross_head: str | None = None
    snapshots: int = 0
    key_source: str = "attention"
    value_source: str = "attention"
    others: Mapping[str, Any] = field(default_factory=dict)


def grafted_config(plain: Mapping[str, Any], graft: GraftSettings, **more: Any) -> WuNengConfig:
    """The configuration of the model described by ``plain`` with the heads of ``graft``.

    Raises:
        InputError: the settings contradict the model or each other.
    """
    heads = graft.state_heads
    if heads is None:
        heads = 2 if plain["num_attention_heads"] % 2 == 0 else 1
    layers = None if graft.state_layers is None else sorted(set(graft.state_layers))
    kind = graft.state_kind or "rwkv7"
    if wrong := check_kind("state", kind):
        raise InputError(f"--state-kind {wrong}")
    if any(layer == "state" for layer in _listed(graft.others.get("layers"))):
        raise InputError("layers: a conversion keeps the attention heads of every layer")
    fields: dict[str, Any] = {
        **_gate(str(graft.others.get("state_kind") or kind)),
        **(load_kind("state", kind).published if graft.state_kind else {}),
        "state_kind": kind,
        "num_state_heads": heads,
        "state_layers": layers if heads else None,
        "state_head_dim": graft.state_head_dim,
        "cross_head": _cross_head(plain, graft),
        "snapshots": graft.snapshots,
        "state_key_source": graft.key_source,
        "state_value_source": graft.value_source,
        "state_init": "published",
        **graft.others,
        # Of a conversion's own: what comes from the source keeps the source's weights.
        "output_init": "normal",
        "state_branch_init": "zero",
    }
    try:
        return WuNengConfig(**({**MIDDLE_WIRING, **plain, **fields, **more}))
    except ValueError as error:
        raise InputError(
            f"these heads cannot be added (--state-heads, --state-kind, --state-layers, "
            f"--state-head-dim, --cross-head, --snapshots, --key-source, --value-source): {error}"
        ) from error


def _gate(kind: str) -> dict[str, Any]:
    """As :data:`MIDDLE_WIRING` says, of heads that have that form of a gate; of others as the kind
    is."""
    names = ("state_output_gate", "state_gate_sigmoid")
    has_form = MIDDLE_WIRING["state_gate_sigmoid"] in load_kind("state", kind).gate_sigmoids
    return {name: MIDDLE_WIRING[name] if has_form else None for name in names}


def _listed(layers: Any) -> list[str]:
    return list(layers["pattern"] if isinstance(layers, dict) else layers or ())


def _cross_head(plain: Mapping[str, Any], graft: GraftSettings) -> str:
    """The kind asked for; by default gated, where the head sizes let attention and state mix."""
    if graft.cross_head is not None:
        return graft.cross_head
    sizes = {graft.state_head_dim or plain["head_dim"], plain["head_dim"]}
    return "gated" if len(sizes) == 1 else "none"


def is_grafted_name(name: str) -> bool:
    """Whether a parameter of this name belongs to state or middle heads, or is attention's token
    shift, which no source has."""
    return _GRAFTED.match(name) is not None


def layer_of(name: str) -> int | None:
    """The layer in a parameter's name, None for parameters outside the layers."""
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found.group(1)) if found else None


class NewTensors:
    """Initial values of the grafted parameters, made a layer at a time.

    A layer's values follow from the seed and the layer alone, not from how files are sharded.
    """

    def __init__(self, config: WuNengConfig, dtype: torch.dtype, seed: int) -> None:
        self.config, self.dtype, self.seed = config, dtype, seed
        self._layer: tuple[int, dict[str, Tensor]] | None = None

    def make(self, name: str) -> Tensor:
        """The parameter called ``name``, in the model's dtype."""
        layer = layer_of(name)
        assert layer is not None
        if self._layer is None or self._layer[0] != layer:
            self._layer = (layer, self.layer(layer))
        return self._layer[1][name].to(self.dtype)

    def layer(self, layer: int) -> dict[str, Tensor]:
        """Every grafted parameter of one layer by its full name, float32."""
        config = self.config
        found: dict[str, Tensor] = {}
        if config.attention_token_shift and config.has_attention(layer):
            width = (config.num_key_value_heads or 0) * (config.head_dim or 0)
            for letter in "kv":  # zero: every key and value as it is
                found[f"model.layers.{layer}.self_attn.shift_{letter}"] = torch.zeros(width)
        if not config.has_state(layer):
            return found
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + layer)
            parts: dict[str, nn.Module] = {
                "state_heads": load_kind("state", self.config.state_kind)(self.config, layer),
                "cross_head": make_middle_heads(self.config, layer),
            }
            with torch.no_grad():
                for part in parts.values():
                    for module in reversed(list(part.modules())):  # a part has the last word
                        initialise(module, self.config)
        return found | {
            f"model.layers.{layer}.{prefix}.{name}": parameter.detach()
            for prefix, part in parts.items()
            for name, parameter in part.named_parameters()
        }
