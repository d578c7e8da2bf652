"""How long a thread of the CPU's OpenMP looks for work before it sleeps.

GNU's looks 300,000 times, some ten milliseconds in which it keeps a core from whoever has work.
Beside anything else that runs, another training or a browser, each of a step's thousands of
parallel sections then waits for a thread that waits for a core: two threads take up to fifty times
as long.
"""

from __future__ import annotations

import os

__all__ = ["wait_briefly"]

#: Of those looks: longer than from one operator to the next, shorter than a turn of the scheduler.
_LOOKS = "10000"


def wait_briefly() -> None:
    """Say so before torch is imported, unless the user has said something else."""
    if not any(os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")):
        os.environ["GOMP_SPINCOUNT"] = _LOOKS
