"""Names of figures: which one is told first, and whether more of it is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from wuneng.report.records import Records

__all__ = [
    "headline",
    "higher_is_better",
    "judged",
    "length_of",
    "loss_figures",
    "pair_of",
    "task_of",
]

_ACCURACY = "accuracy@"


def task_of(name: str) -> str:
    """``recall`` of ``recall/accuracy@64``."""
    return name.partition("/")[0]


def length_of(name: str) -> int | None:
    """64 of ``recall/accuracy@64``; None where a name carries no length."""
    _, _, length = name.rpartition(_ACCURACY)
    return int(length) if _ACCURACY in name and length.isdecimal() else None


def higher_is_better(name: str) -> bool:
    """Accuracies; losses, perplexities and bits per byte are better when lower."""
    return _ACCURACY in name


def judged(names: Iterable[str]) -> list[str]:
    """Of each task its accuracies by length, else bits per byte, else its loss."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(task_of(name), []).append(name)
    chosen = []
    for task, own in found.items():
        by_length = {n: length for n in own if (length := length_of(n)) is not None}
        accuracies = sorted(by_length, key=lambda n: by_length[n])
        texts = [n for n in (f"{task}/bits_per_byte", f"{task}/loss") if n in own]
        chosen += accuracies or texts[:1]
    return chosen


def loss_figures(names: Iterable[str]) -> list[str]:
    """Of each task the figure of a learning curve: bits per byte, else its loss."""
    known = list(dict.fromkeys(names))
    tasks = dict.fromkeys(task_of(name) for name in known)
    found = [
        next((n for n in (f"{task}/bits_per_byte", f"{task}/loss") if n in known), None)
        for task in tasks
    ]
    return [name for name in found if name is not None]


def headline(records: Records) -> str | None:
    """The figure that decides: the study's primary one, else the first that is judged."""
    if records.primary:
        return records.primary
    names = judged(next(iter(records.arms.values()), {}).get("quality", ()))
    return names[0] if names else None


def pair_of(
    paired: Sequence[Mapping[str, Any]], first: str, second: str, name: str
) -> Mapping[str, Any] | None:
    """A paired difference as first minus second, whichever way round it was written."""
    for pair in paired:
        if pair["figure"] != name or set(pair["arms"]) != {first, second}:
            continue
        if pair["arms"][0] == first:
            return pair
        turned = {**pair, "arms": [first, second], "difference": -pair["difference"]}
        turned["interval"] = _turned(pair["interval"])
        if crossed := pair.get("crossed"):
            turned["crossed"] = {**crossed, "interval": _turned(crossed["interval"])}
        return turned
    return None


def _turned(interval: Sequence[float]) -> list[float]:
    low, high = interval
    return [-high, -low]
