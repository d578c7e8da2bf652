"""What files from before a field was there mean: fields whose default is not what was done before.

Configurations and recipes that were stored hold every field of their time. Needs no other package.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BEFORE"]

#: Initial values, which no file stated as long as there was one choice; and the paper's wiring read
#: the state once.
BEFORE: dict[str, Any] = {"output_init": "normal", "state_init": "published", "state_reads": 1}
