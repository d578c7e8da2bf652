"""``wuneng train --dry-run`` for several devices: whose roof, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.errors import InputError, nearest
from wuneng_cli.render import short_bytes

if TYPE_CHECKING:
    from wuneng.tables import Table
    from wuneng.train.per_device import Roof

__all__ = ["add_rows", "device_lines", "roof_of"]

_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "gathered")


def roof_of(name: str | None) -> Roof | None:
    """What ``--roof`` names: an accelerator of a data sheet, or a bench.json of this machine.

    Raises:
        InputError: it is neither.
    """
    from wuneng.train.data_sheets import CARDS
    from wuneng.train.per_device import Roof

    if name is None:
        return None
    known = {card.name.lower(): card for card in CARDS}
    card = known.get(name.lower())
    if card is not None:
        source = f"data sheet of {card.name}"
        return Roof(source, card.flops, card.bandwidth, card.memory)
    if not Path(name).is_file():
        names = [card.name for card in CARDS]
        raise InputError(
            f"--roof: expected {', '.join(names)} or a bench.json, got {name!r}."
            f"{nearest(name, names)}"
        )
    from wuneng.records import read_json

    record = read_json(Path(name))
    try:
        rates = record["machine"]["rates"]
        flops, bandwidth = rates["matmul_flops"], rates["bandwidth_bytes_per_second"]
        if not (flops > 0 and bandwidth > 0):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(f"--roof {name}: expected a bench.json with machine.rates") from None
    return Roof(f"bench's rates ({name})", float(flops), float(bandwidth))


def add_rows(table: Table, planned: dict[str, Any]) -> None:
    """What each device holds, part by part."""
    devices = [arm["per_device"] for arm in planned["arms"].values()]
    if None in devices:
        return
    table.add_section()
    table.add_row("processes", *(f"{one['processes']}" for one in devices))
    table.add_row("of each: how", *(one["degrees"] for one in devices))
    for part in _PARTS:
        if any(one["memory"][part] for one in devices):
            table.add_row(
                f"of each: {part}", *(short_bytes(one["memory"][part]) for one in devices)
            )
    table.add_row(
        "of each: memory (computed)", *(short_bytes(one["memory"]["total"]) for one in devices)
    )


def device_lines(planned: dict[str, Any], words: Any) -> Iterator[str]:
    """The time at the roof, marked as computed; ``words`` makes a time readable."""
    devices = {name: arm["per_device"] for name, arm in planned["arms"].items()}
    if None in devices.values():
        return
    for name, one in devices.items():
        if one["fits"] is False:
            yield f"{name}: does not fit a device ({one['roof']}), as computed"
    first = next(iter(devices.values()))
    if first["roof"] is None:
        yield "memory of each device is computed, not measured; --roof NAME computes a time as well"
        return
    times = ", ".join(f"{name} {words(one['seconds'])}" for name, one in devices.items())
    yield (
        f"computed, not measured, at the {first['roof']}: at least {times} on "
        f"{first['processes']} devices, each at its full rate and with communication free; real "
        "runs reach a part of that"
    )
