"""The arms that are known by name: what each changes of the model that it is compared with.

Recipes and the benchmark read the same table; the one has settings for a base, the other a model's
configuration, with the same names of fields. Needs no other package.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from wuneng.head_counts import replaced_heads

__all__ = [
    "BUILT_IN_ARMS",
    "DEFAULT_ARMS",
    "RWKV7_TIME_MIX",
    "BuiltInArm",
    "Match",
    "arm_problem",
]

Match = Literal["width", "parameters", "flops", "state_bytes"]
Changes = dict[str, Any]


class BuiltInArm(NamedTuple):
    """An arm that may be named without saying what it changes.

    Attributes:
        match: what its feed-forward width is chosen to keep equal to the base's.
        changes: from the base to the fields that the arm has otherwise.
        meaning: of the name, in half a line.
    """

    match: Match
    changes: Callable[[Any], Changes]
    meaning: str


#: RWKV-7's time mix, whatever its sizes: of the arm, and of checkpoints that are converted.
RWKV7_TIME_MIX: Changes = {
    "num_attention_heads": 0,
    "attention_token_shift": False,
    "state_key_source": "own",
    "state_value_source": "own",
    "token_shift": "pre",
    "state_output_gate": True,
    "state_gate_sigmoid": "hidden",
    "state_value_residual": True,
}
#: What RWKV-7's heads alone have, at the value of heads without it.
_OWN_OF_RWKV7: Changes = {
    "state_options": None,
    "state_init": None,
    "state_reads": 1,
    "state_removal_key": "shared",
    "state_value_residual": False,
    "state_bonus": True,
    "state_output_gate": None,
    "state_gate_sigmoid": None,
}


#: Neighbouring tokens are mixed as published delta nets do it.
_CONVOLVED: Changes = {"token_shift": "none", "state_short_conv": 4}


def _attention_head_size(base: Any) -> int:
    if base.head_dim is not None:
        return int(base.head_dim)
    if base.num_attention_heads:
        return int(base.hidden_size // base.num_attention_heads)
    return int(base.state_head_dim or 64)


def _plain(base: Any) -> Changes:
    return {
        "num_state_heads": 0,
        "cross_head": "none",
        "snapshots": 0,
        "layers": None,
        "attention_short_conv": 0,
        "attention_token_shift": False,
        "attention_output_gate": False,
    }


def _more_heads(base: Any) -> Changes:
    """Attention heads for the state heads, as many channels; whole groups of them where several
    heads share a key."""
    size, heads = _attention_head_size(base), base.num_attention_heads
    groups = heads if base.num_key_value_heads is None else base.num_key_value_heads
    shared = max(1, heads // max(1, groups))
    channels = base.num_state_heads * (base.state_head_dim or size)
    more = math.ceil(channels / (size * shared))
    return {
        **_plain(base),
        "num_attention_heads": heads + more * shared,
        "num_key_value_heads": groups + more,
        "head_dim": size,
    }


def _full_width(base: Any) -> Changes:
    """State heads that fill the width by themselves."""
    size = base.state_head_dim or _attention_head_size(base)
    return {
        "num_state_heads": max(1, base.hidden_size // size),
        "state_head_dim": size,
        "state_layers": None,
        "cross_head": "none",
    }


def _pure_rwkv7(base: Any) -> Changes:
    return {
        **_full_width(base),
        **_OWN_OF_RWKV7,
        **RWKV7_TIME_MIX,
        "state_init": base.state_init if base.state_kind == "rwkv7" else None,
        "state_a_max": base.state_a_max or 1.0,  # RWKV-7's, unless the recipe says otherwise
        "num_key_value_heads": None,
        "head_dim": None,
        "layers": None,
        "state_kind": "rwkv7",
        "state_short_conv": 0,
    }


def _interleaved(base: Any) -> Changes:
    """Whole layers of state heads, one layer of attention after every three; the last layer is
    attention where there are fewer than four."""
    states = min(3, base.num_hidden_layers - 1)
    pattern = ["state"] * states + ["attention"]
    size = _attention_head_size(base)
    return {
        **_full_width(base),
        "head_dim": size,
        "layers": {"pattern": pattern},
        "sliding_window_layers": None,
    }


def _replacing(base: Any) -> Changes:
    """State heads take the place of attention heads; key/value heads shrink to a divisor."""
    states, heads = replaced_heads(base.num_attention_heads, base.num_state_heads)
    groups = base.num_key_value_heads
    if groups is not None and heads > 0:
        groups = max(g for g in range(1, min(groups, heads) + 1) if heads % g == 0)
    return {
        "num_attention_heads": heads,
        "num_state_heads": states,
        "num_key_value_heads": groups,
        "head_dim": _attention_head_size(base),
    }


def _changing(**changes: Any) -> Callable[[Any], Changes]:
    return lambda base: dict(changes)


BUILT_IN_ARMS: dict[str, BuiltInArm] = {
    "wuneng": BuiltInArm("width", _changing(), "the model itself"),
    "mha": BuiltInArm("parameters", _plain, "attention heads alone"),
    "mha-shift": BuiltInArm(
        "parameters",
        lambda base: {**_plain(base), "attention_token_shift": True},
        "attention with the token shift on its keys and values",
    ),
    "mha-conv": BuiltInArm(
        "parameters",
        lambda base: {**_plain(base), "attention_short_conv": 4},
        "attention with a short convolution of queries, keys and values",
    ),
    "mha-heads": BuiltInArm(
        "parameters", _more_heads, "more attention heads for the state heads, as many channels"
    ),
    "interleaved": BuiltInArm(
        "parameters", _interleaved, "layers of state heads, every fourth of attention heads"
    ),
    "gated-delta": BuiltInArm(
        "parameters",
        _changing(**_OWN_OF_RWKV7, **_CONVOLVED, state_kind="gated_delta"),
        "Gated DeltaNet's heads for the state heads, with their short convolution",
    ),
    "kda": BuiltInArm(
        "parameters",
        _changing(**_OWN_OF_RWKV7, **_CONVOLVED, state_kind="kda"),
        "Kimi Delta Attention's heads for the state heads, with their short convolution",
    ),
    "rwkv7": BuiltInArm("parameters", _pure_rwkv7, "RWKV-7's own time mix, without attention"),
    "replace": BuiltInArm("width", _replacing, "state heads in the place of some attention heads"),
    "no-shift": BuiltInArm("width", _changing(token_shift="none"), "without the token shift"),
    "no-snapshots": BuiltInArm("width", _changing(snapshots=0), "without earlier states"),
    "no-middle": BuiltInArm("width", _changing(cross_head="none"), "without middle heads"),
    "concat": BuiltInArm("width", _changing(cross_head="concat"), "middle heads by concatenation"),
    "additive": BuiltInArm("width", _changing(cross_head="additive"), "additive middle heads"),
    "gated": BuiltInArm("width", _changing(cross_head="gated"), "gated middle heads"),
}


#: What is compared when a recipe does not say: the control shows what the token shift alone wins.
DEFAULT_ARMS = ("wuneng", "mha", "mha-shift")


def arm_problem(name: str, base: Any) -> tuple[str, str] | None:
    """The field of the base, and what is wrong with it, where the arm would change nothing that the
    base has; None where it can be made."""
    if name in ("gated-delta", "kda") and not base.num_state_heads:
        return "num_state_heads", f"expected 1 or more, whose kind arm {name} changes, got 0"
    if name == "mha-heads" and not base.num_state_heads:
        return "num_state_heads", f"expected 1 or more, which arm {name} replaces, got 0"
    if name == "mha-heads" and not base.num_attention_heads:
        return "num_attention_heads", f"expected 1 or more, of which arm {name} has more, got 0"
    if name == "interleaved" and base.num_hidden_layers < 2:
        return "num_hidden_layers", f"expected 2 or more for arm {name}, got 1"
    if name == "interleaved" and not base.num_attention_heads:
        return "num_attention_heads", f"expected 1 or more for arm {name}, got 0"
    return None
