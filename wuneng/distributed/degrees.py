"""How many copies of a model there are, and into how many shards each is cut."""

from __future__ import annotations

from dataclasses import dataclass

from wuneng.errors import InputError
from wuneng.recipe.parallel import Parallel

__all__ = ["SINGLE", "Degrees", "degrees_for"]

#: Of a device's memory: the rest is for activations.
_SHARE_FOR_STATE = 0.25


@dataclass(frozen=True)
class Degrees:
    """Their product is the number of processes."""

    replicate: int = 1
    shard: int = 1
    context: int = 1

    @property
    def size(self) -> int:
        """Processes."""
        return self.replicate * self.shard * self.context

    @property
    def data(self) -> int:
        """Parts that a batch is cut into."""
        return self.replicate * self.shard

    def __str__(self) -> str:
        kinds = {(False, False): "one process", (True, False): "DDP", (False, True): "FSDP"}
        kind = kinds.get((self.replicate > 1, self.shard > 1), "HSDP")
        return f"{kind}, replicate {self.replicate} x shard {self.shard}" if self.size > 1 else kind


#: One process.
SINGLE = Degrees()


def degrees_for(
    parallel: Parallel,
    size: int,
    *,
    host_size: int | None = None,
    state_bytes: float = 0.0,
    device_bytes: float = float("inf"),
) -> Degrees:
    """What ``parallel:`` means for ``size`` processes.

    Args:
        host_size: processes of one host; default all.
        state_bytes: weights, gradients and optimiser states of the model.
        device_bytes: memory that one process has for everything.

    Raises:
        InputError: the numbers of the recipe do not make ``size``.
    """
    replicate, shard, context = parallel.replicate, parallel.shard, parallel.context
    data, rest = divmod(size, context)
    if rest:
        raise InputError(
            f"parallel.context: expected a divisor of the number of processes ({size}), "
            f"got {context}"
        )
    if shard == "auto" and replicate == "auto":
        host_size = host_size or size
        large = state_bytes > _SHARE_FOR_STATE * device_bytes
        shard = (host_size if data % host_size == 0 else data) if large else 1
    if shard == "auto":
        assert replicate != "auto"
        return Degrees(replicate, _rest("replicate", replicate, data), context)
    if replicate == "auto":
        return Degrees(_rest("shard", shard, data), shard, context)
    if replicate * shard != data:
        raise InputError(
            f"parallel: replicate {replicate} x shard {shard} x context {context} are "
            f"{replicate * shard * context} processes, started were {size}; `auto` takes what is "
            "left"
        )
    return Degrees(replicate, shard, context)


def _rest(name: str, given: int, processes: int) -> int:
    if processes % given:
        raise InputError(
            f"parallel.{name}: expected a divisor of the number of processes ({processes}), "
            f"got {given}"
        )
    return processes // given
