"""The paired differences of a run as a table: each arm against plain attention, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.tables import Column, Table
from wuneng.train.differences import Difference, difference, in_numbers
from wuneng.train.upgrade_summary import is_upgrade
from wuneng.train.verdicts import figure, judged_names, pick_arms

__all__ = ["paired_table"]


def paired_table(results: Mapping[str, Any]) -> Table | None:
    """One row per judged figure, one column per arm that is compared with plain attention.

    None where nothing was paired, and for upgrades, whose own table has the differences.
    """
    arms = results["arms"]
    baseline = pick_arms(arms).baseline
    others = [arm for arm in arms if arm != baseline]
    if not results.get("paired") or is_upgrade(results) or baseline is None or not others:
        return None
    names = [name for task in judged_names(arms[baseline]["quality"]).values() for name in task]
    found = {
        name: [difference(results, arm, baseline, name) for arm in others]
        for name in names
        if all(name in arms[arm]["quality"] for arm in others)
    }
    table = Table(
        f"difference from {baseline}, with 95 % intervals",
        [Column("", name=True), *(Column(arm) for arm in others)],
        caption=_caption([one for cells in found.values() for one in cells]),
        turns=True,
    )
    for name, cells in found.items():
        digits = 3 if figure(arms[baseline], name).higher_is_better else 4
        table.add_row(name, *(in_numbers(one, digits) for one in cells))
    return table


def _caption(found: list[Difference]) -> str:
    paired = sorted({one.paired for one in found if one.paired})
    return f"paired over the same {', '.join(paired)}" if paired else ""
