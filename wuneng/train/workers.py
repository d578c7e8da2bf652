"""How many arms train at the same time, and on which devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from wuneng.device import pick_device

__all__ = ["Workers"]


@dataclass(frozen=True)
class Workers:
    """Processes that train side by side; with one, everything is trained in this process."""

    number: int | None = None
    """None: one for each GPU, or one."""
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    """What each process runs in; picklable."""

    def devices(self, name: str) -> list[str]:
        """One for each that may train at the same time; a recipe's ``device`` is ``name``.

        Raises:
            InputError: this machine has no such device.
        """
        device = pick_device(name)
        if device.type != "cuda" or device.index is not None:
            return [str(device)] * (self.number or 1)
        count = torch.cuda.device_count()
        if (self.number or count) == 1:
            return [str(device)]
        return [f"cuda:{index % count}" for index in range(self.number or count)]
