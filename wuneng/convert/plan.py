"""What a conversion writes: for each tensor of the destination, where its values come from.

Every tensor of the source is accounted for: it is kept, or knowingly dropped for a stated reason,
or its name stops the conversion.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from transformers import initialization as init

from wuneng.convert.graft import is_grafted_name, layer_of
from wuneng.convert.shard_writer import Entry
from wuneng.convert.tensor_files import TensorSource
from wuneng.errors import ModelError, nearest
from wuneng.model import WuNengConfig, WuNengForCausalLM

__all__ = [
    "EMBEDDING",
    "HEAD",
    "Plan",
    "Route",
    "kept_routes",
    "main_dtype",
    "make_plan",
    "model_shapes",
    "ties_its_head",
]

#: Buffers that old checkpoints stored and that are computed from the configuration.
_COMPUTED = ("rotary_emb.inv_freq",)
_LARGEST_SHARD = 10 << 30
#: In the place of a source file, for what comes from none.
_NEW = ""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Route:
    """Where a source tensor goes.

    Attributes:
        target: its name in the destination.
        change: what happens to its values (a reshape or transposition); None leaves them.
    """

    target: str
    change: Callable[[Tensor], Tensor] | None = None


@dataclass
class Plan:
    """The destination's tensors, shard by shard, and what became of the source's.

    Attributes:
        shards: one list for each file to be written.
        kept: source names whose values arrive in the destination.
        dropped: source name to the reason it is left out.
        new: destination names that the source has nothing for.
    """

    shards: list[list[Entry]]
    kept: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


def main_dtype(source: TensorSource) -> torch.dtype:
    """The dtype of the largest tensor: norms are sometimes stored wider than the rest."""
    infos = source.tensors.values()
    return max(infos, key=lambda info: torch.Size(info.shape).numel()).dtype


def model_shapes(config: WuNengConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the parameters that a checkpoint of ``config`` holds.

    Raises:
        ModelError: no model can be built from the configuration.
    """
    try:
        with torch.device("meta"), init.no_init_weights():
            model = WuNengForCausalLM(copy.deepcopy(config))
            model.tie_weights()
    except Exception as error:  # sizes that overflow, rotary settings of the wrong type, ...
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ModelError(f"the configuration does not make a model: {reason}") from error
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def kept_routes(
    source: TensorSource,
    wanted: Mapping[str, tuple[int, ...]],
    silent: Callable[[str], bool] = lambda _: False,
) -> tuple[dict[str, Route], dict[str, str]]:
    """Routes of a checkpoint that has our names already, and what it holds but needs not.

    Args:
        silent: names of a state branch that adds nothing and may be left out.

    Raises:
        ModelError: a tensor is neither used nor knowingly dropped; names it.
    """
    routes, dropped = {}, {}
    for name in source.tensors:
        if name in wanted:
            routes[name] = Route(name)
        elif name.endswith(_COMPUTED):
            dropped[name] = "computed from the configuration"
        elif silent(name):
            dropped[name] = "part of a state branch that adds exactly nothing"
        elif name == HEAD and ties_its_head(source):
            dropped[name] = f"equal to {EMBEDDING}, to which it is tied"
        else:
            raise ModelError(
                f"{source.tensors[name].file}: {name} is neither a tensor that this model uses "
                f"nor one that may be dropped.{nearest(name, wanted)}"
            )
    return routes, dropped


def ties_its_head(source: TensorSource) -> bool:
    """Whether a stored output embedding, if there is one, repeats the input embedding."""
    if not {EMBEDDING, HEAD} <= source.tensors.keys():
        return True
    return torch.equal(source.read(EMBEDDING), source.read(HEAD))


def make_plan(
    source: TensorSource,
    routes: Mapping[str, Route],
    dropped: Mapping[str, str],
    *,
    dtype: torch.dtype | None,
    wanted: Mapping[str, tuple[int, ...]],
    new: Callable[[str], Tensor] | None = None,
    may_be_new: Callable[[str], bool] = is_grafted_name,
    new_apart: bool = False,
) -> Plan:
    """Fit the routes to what the destination wants; one shard for each source file.

    Args:
        dtype: of the destination; None leaves each tensor as it is stored.
        wanted: names and shapes of the destination.
        new: makes, by name, what the source has nothing for; None if nothing may be new.
        may_be_new: names for which that is right.
        new_apart: whether what is new gets a shard of its own.

    Raises:
        ModelError: a tensor is missing, or a shape contradicts the configuration.
    """
    plan = Plan([], dropped=dict(dropped))
    by_file: dict[str, list[Entry]] = {}
    home: dict[int | None, str] = {}
    filled = set()
    for name, route in routes.items():
        info = source.tensors[name]
        entry = _kept(source, name, route, wanted[route.target], dtype)
        file = str(info.file)
        by_file.setdefault(file, []).append(entry)
        home.setdefault(layer_of(route.target), file)
        filled.add(route.target)
        plan.kept.append(name)
    missing = [name for name in wanted if name not in filled]
    lost = [name for name in missing if new is None or not may_be_new(name)]
    if lost:
        raise ModelError(
            f"the source lacks {len(lost)} tensors that its configuration calls for: "
            f"{', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''}"
        )
    new_dtype = dtype or main_dtype(source)
    if new is not None:
        for name in missing:
            entry = Entry(name, wanted[name], new_dtype, partial(new, name))
            file = _NEW if new_apart else home[layer_of(name)]
            by_file.setdefault(file, []).append(entry)
            plan.new.append(name)
    plan.shards = [piece for shard in by_file.values() for piece in _split(shard)]
    return plan


def _split(shard: list[Entry]) -> list[list[Entry]]:
    """Pieces of at most :data:`_LARGEST_SHARD` bytes, where single tensors allow it."""
    pieces: list[list[Entry]] = [[]]
    size = 0
    for entry in shard:
        if pieces[-1] and size + entry.nbytes > _LARGEST_SHARD:
            pieces.append([])
            size = 0
        pieces[-1].append(entry)
        size += entry.nbytes
    return pieces


def _kept(
    source: TensorSource,
    name: str,
    route: Route,
    shape: tuple[int, ...],
    dtype: torch.dtype | None,
) -> Entry:
    info = source.tensors[name]
    probe = torch.empty(info.shape, dtype=info.dtype, device="meta")
    try:
        found = tuple((route.change(probe) if route.change else probe).shape)
    except RuntimeError:
        found = info.shape
    if found != shape:
        raise ModelError(
            f"{info.file}: {name} has shape {list(info.shape)}; the configuration makes it "
            f"{list(shape)}"
        )
    target_dtype = info.dtype if dtype is None else dtype

    def make() -> Tensor:
        tensor = source.read(name)
        if route.change is not None:
            tensor = route.change(tensor)
        return _cast(tensor, target_dtype, name)

    return Entry(route.target, shape, target_dtype, make)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` in ``dtype``. ModelError where a value is too large for it."""
    cast = tensor.to(dtype)
    if dtype == torch.float16 and tensor.dtype != dtype and not torch.isfinite(cast).all():
        largest = tensor.abs().max().item()
        raise ModelError(
            f"{name} holds {largest:.4g}, float16 ends at 65504; choose --dtype bf16 or fp32"
        )
    return cast
