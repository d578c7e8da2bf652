"""Who is compared in a run: known before anything of it is resolved, and kept once it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from wuneng.recipe import Recipe
from wuneng.records import ArmDirectory, RunDirectory

__all__ = ["RunOutline"]


@dataclass(frozen=True)
class RunOutline:
    """The arms of a run by name, the reference first, and the seeds that each is trained from."""

    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    @classmethod
    def of(cls, recipe: Recipe) -> RunOutline:
        """That of a recipe."""
        return cls(recipe.name, tuple(recipe.arms), tuple(recipe.seeds))

    @property
    def reference(self) -> str:
        """The first arm, which ``match`` aims at."""
        return self.arms[0]

    def place(self, run: RunDirectory, arm: str, seed: int) -> ArmDirectory:
        """``<arm>``, or ``<arm>/seed-<n>`` where there are several seeds."""
        return run.arm(arm, seed if len(self.seeds) > 1 else None)

    def places(self, run: RunDirectory) -> Iterator[ArmDirectory]:
        """Every arm's, from every seed."""
        return (self.place(run, arm, seed) for arm in self.arms for seed in self.seeds)
