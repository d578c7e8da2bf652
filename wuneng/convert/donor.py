"""A warm start of grafted state heads from a trained RWKV-7 (``--state-from``).

The donor's heads are sliced: its first S heads, the leading columns of its low-rank factors, and of
matrices that read the residual stream the leading input channels. The donor's residual stream is
not the Transformer's, so what is copied is a place to start from, not a function that carries over.
The branch's output projection stays zero: the converted model still equals its source exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wuneng.convert.rwkv7 import Rwkv7, read_rwkv7
from wuneng.convert.source import locate, open_tensors
from wuneng.errors import InputError, ModelError
from wuneng.model import WuNengConfig

__all__ = ["Donor", "open_donor"]

#: our parameter (inside ``state_heads``) -> the donor's (inside ``att``).
_FROM = {
    "r_proj.weight": "receptance.weight",
    "k_proj.weight": "key.weight",
    "v_proj.weight": "value.weight",
    "g_norm.weight": "ln_x.weight",
    "g_norm.bias": "ln_x.bias",
} | {name: name for name in ("k_k", "k_a", "r_k", "w0", "w1", "w2", "a0", "a1", "a2")}


@dataclass
class Donor:
    """Fills grafted parameters from an RWKV-7 checkpoint.

    Attributes:
        checkpoint: the donor.
        config: the model that receives.
        copied: names that were filled, in whole or in part, as they are made.
    """

    label: str
    checkpoint: Rwkv7
    config: WuNengConfig
    copied: list[str] = field(default_factory=list)

    def donor_layer(self, layer: int) -> int:
        """The donor's layer at the same relative depth."""
        last, theirs = self.config.num_hidden_layers - 1, self.checkpoint.config.num_hidden_layers
        return round(layer * (theirs - 1) / last) if last else 0

    def wrap(self, make: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        """``make`` with what the donor has written over the initial values."""

        def warm(name: str) -> Tensor:
            tensor = make(name)
            _, _, layer, part, leaf = name.split(".", 4)
            theirs = _FROM.get(leaf) if part == "state_heads" else None
            if theirs is None or self._own_reader(leaf):
                return tensor
            stored = f"blocks.{self.donor_layer(int(layer))}.att.{theirs}"
            if stored not in self.checkpoint.stored:
                return tensor
            self.copied.append(name)
            return _overwritten(tensor, self.checkpoint.read(stored))

        return warm

    def _own_reader(self, leaf: str) -> bool:
        """``v_proj`` reads attention's output, not the residual stream, for one value source."""
        return leaf == "v_proj.weight" and self.config.state_value_source == "attention_output"

    def record(self) -> dict[str, Any]:
        """What convert.json says of the warm start."""
        return {
            "from": self.label,
            "tensors": sorted(set(self.copied)),
            "layers": {
                str(layer): self.donor_layer(layer)
                for layer in range(self.config.num_hidden_layers)
                if self.config.has_state(layer)
            },
            "equivalence": False,
        }


def open_donor(label: str, config: WuNengConfig) -> Donor:
    """The donor for a model of ``config``.

    Raises:
        ModelError: ``label`` is not an RWKV-7.
        InputError: its heads have another size, or there are fewer of them than state heads.
    """
    located = locate(label)
    if not located.is_rwkv7:
        raise ModelError(f"--state-from {label}: expected an RWKV-7, got a {located.kind}")
    settings = None if located.is_file else located.config
    donor = read_rwkv7(open_tensors(located), str(located.path), settings)
    theirs = donor.config
    if not config.num_state_heads:
        raise InputError("--state-from fills state heads; --state-heads is 0")
    if config.state_kind != "rwkv7":
        raise InputError(f"--state-from fills RWKV-7 heads; --state-kind is {config.state_kind}")
    if config.state_head_dim != theirs.state_head_dim:
        raise InputError(
            f"--state-from {label}: its heads have {theirs.state_head_dim} channels, the state "
            f"heads {config.state_head_dim}; give --state-head-dim {theirs.state_head_dim} "
            "--cross-head none"
        )
    if config.num_state_heads > theirs.num_state_heads:
        raise InputError(
            f"--state-from {label}: it has {theirs.num_state_heads} heads in a layer, "
            f"--state-heads asks for {config.num_state_heads}"
        )
    return Donor(label, donor, config)


def _overwritten(tensor: Tensor, donor: Tensor) -> Tensor:
    """``tensor`` with the donor's leading block written over its own, in the donor's layout.

    Heads lie along the leading part of their axis in both, so the common leading block of every
    axis is: the first S heads, the first ranks, the first input channels.
    """
    donor = donor.squeeze()
    if donor.numel() and donor.dim() < tensor.dim():
        donor = donor.reshape(-1, tensor.shape[-1])
    elif donor.dim() > tensor.dim():
        donor = donor.reshape(-1)
    block = tuple(slice(0, min(a, b)) for a, b in zip(tensor.shape, donor.shape, strict=True))
    result = tensor.clone()
    result[block] = donor[block].to(tensor.dtype)
    if not torch.isfinite(result).all():
        raise ModelError("the donor's values do not fit the model's dtype")
    return result
