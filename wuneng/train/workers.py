"""How many arms train at the same time, and on which devices."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch

from wuneng.device import pick_device
from wuneng.errors import InputError
from wuneng.records.claimant import Claimant

__all__ = ["Workers"]


@dataclass(frozen=True)
class Workers:
    """Processes that train side by side; with one, everything is trained in this process."""

    number: int | None = None
    """None: one for each GPU, or one."""
    together: int = 1
    """Processes that train each arm; with more than one, none of them is this process."""
    within: Callable[[], AbstractContextManager[None]] = nullcontext
    """What each process runs in; picklable."""
    claimant: Claimant = field(default_factory=Claimant)
    """As whom this process claims units, beside others that work on the same run."""

    def devices(self, name: str) -> list[str]:
        """One for each that may train at the same time; a recipe's ``device`` is ``name``.

        Raises:
            InputError: this machine has no such device.
        """
        device = pick_device(name)
        if self.together > 1:
            return self._of_groups(device)
        if device.type != "cuda" or device.index is not None:
            return [str(device)] * (self.number or 1)
        count = torch.cuda.device_count()
        if (self.number or count) == 1:
            return [str(device)]
        return [f"cuda:{index % count}" for index in range(self.number or count)]

    def _of_groups(self, device: torch.device) -> list[str]:
        """Each process of a group takes a GPU of its own, by its number among all."""
        groups = self.number or 1
        count = torch.cuda.device_count() if device.type == "cuda" else 0
        if device.type == "cuda" and groups * self.together > count:
            raise InputError(
                f"--jobs {groups} --processes {self.together}: {groups * self.together} processes "
                f"need a GPU each; this machine has {count}"
            )
        return [str(device)] * groups
