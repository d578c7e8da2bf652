"""What files from before a field was there mean: fields whose default is not what was done before.

Configurations and recipes that were stored hold every field of their time, a recipe's some as null.
Needs no other package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.default_wiring import MIDDLE_WIRING

__all__ = ["BEFORE", "gate_before"]

#: Initial values, which no file stated as long as there was one choice; and the paper's wiring read
#: the state once.
BEFORE: dict[str, Any] = {"output_init": "normal", "state_init": "published", "state_reads": 1}


def gate_before(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be added of the state heads' output gate to a file that may be older than today's:
    where it leaves that open, RWKV-7's heads had none, and RWKV-LM's form of it where they had."""
    if fields.get("state_kind", "rwkv7") != "rwkv7":
        return {}
    if fields.get("state_output_gate") is None:
        return {"state_output_gate": MIDDLE_WIRING["state_output_gate"]}
    if fields["state_output_gate"] and fields.get("state_gate_sigmoid") is None:
        return {"state_gate_sigmoid": MIDDLE_WIRING["state_gate_sigmoid"]}
    return {}
