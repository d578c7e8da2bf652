"""How heads are wired and start where nobody says, which is as measured best (docs/findings.md);
and how grafts and older files have them.

Needs no other package: configurations, recipes, conversion and the benchmark read it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["KINDS_OWN", "LARGEST_RATE", "MIDDLE_WIRING", "first_outputs", "shifts_attention"]

#: ``state_a_max`` of every kind of state heads that has a choice.
LARGEST_RATE = 2.0

#: What each of our kinds of state heads has where nobody says. RWKV-7's gate is in Kimi Delta
#: Attention's form; the other kinds are as their publications say.
KINDS_OWN: dict[str, dict[str, Any]] = {
    kind: {
        "state_output_gate": True,
        "state_gate_sigmoid": sigmoid,
        "state_a_max": LARGEST_RATE,
    }
    for kind, sigmoid in {"rwkv7": "output", "kda": "output", "gated_delta": None}.items()
}

#: The architecture with few new parameters, beside a model that keeps its own attention: middle
#: heads, attention's keys, RWKV-7's rates, no gate. Of grafts and of the benchmark's own models,
#: and what a file means that was written when these were the defaults.
MIDDLE_WIRING: dict[str, Any] = {
    "cross_head": "gated",
    "state_key_source": "attention",
    "state_a_max": 1.0,
    "state_output_gate": False,
    "state_gate_sigmoid": "hidden",
    "attention_token_shift": False,
}


def shifts_attention(attention_heads: int, state_heads: int, token_shift: str) -> bool:
    """``attention_token_shift`` where nobody says: beside state heads that see the token before by
    a shift too; attention alone is the plain baseline."""
    return bool(attention_heads and state_heads) and token_shift != "none"


def first_outputs(state_heads: int) -> str:
    """``output_init`` where nobody says: state heads learn best from outputs of zero, attention
    alone from random ones."""
    return "zero" if state_heads else "normal"
