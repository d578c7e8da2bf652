"""A study's conclusion: what was planned, tuned and found at every rung, and how loss scales."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from wuneng.report.arms import KEPT
from wuneng.report.plots import Interval, forest
from wuneng.report.records import Records
from wuneng.report.saving import saving_of, saving_section
from wuneng.report.scaling import scaling
from wuneng.report.section import Picture, Section
from wuneng.statistics import conclude, paired_by_seed

__all__ = ["study_sections"]


def study_sections(records: Records) -> Iterator[Section]:
    """Plan, differences at every rung, arms, scaling and tuning, as far as there are any."""
    study = records.study
    if study is None:
        return
    told = (_plan, _tokens, _differences, _arms, scaling, _tuning)
    yield from (section for tell in told if (section := tell(study)) is not None)


def _plan(study: Mapping[str, Any]) -> Section:
    plan = study["plan"]
    changes = [str(change) for change in plan.get("changes") or ()]
    rows = [
        {"what": key, "value": study.get(key)}
        for key in ("primary", "smallest_effect", "match", "reference")
    ]
    rows.insert(0, {"what": "sha256", "value": plan.get("sha256")})
    rows += [{"what": "changed afterwards", "value": change} for change in changes]
    text = "Written and hashed before the first step; " + (
        "what changed since is named." if changes else "nothing was changed since."
    )
    return Section("plan", "Plan", (text,), tuple(rows))


def _tokens(study: Mapping[str, Any]) -> Section | None:
    """How many fewer tokens the first arm needs for the loss that each other one ends with, at
    every rung; none where a higher figure decides, which is no loss."""
    if study["higher_is_better"]:
        return None
    rows, names = [], []
    for rung in study["rungs"]:
        for found in rung["differences"]:
            first, other = found["arms"]
            names.append(f"{rung['rung']}: {first} / {other}")
            rows.append(
                {"rung": rung["rung"], "arm": first, "against": other}
                | saving_of(found.get("tokens_saved"))
            )
    return saving_section("study-tokens-saved", rows, names)


def _differences(study: Mapping[str, Any]) -> Section | None:
    """First arm minus each other in the figure that decides, seed by seed, and what that allows to
    be said."""
    rows = []
    for rung in study["rungs"]:
        for found in rung["differences"]:
            ours, theirs = (rung["arms"][arm] for arm in found["arms"])
            margin = study["smallest_effect"] * abs(ours["mean"])
            again = paired_by_seed(np.array(ours["per_seed"]), np.array(theirs["per_seed"]))
            said = conclude(again, margin, higher_is_better=study["higher_is_better"])
            low, high = found["interval"] or (None, None)
            rows.append(
                {
                    "rung": rung["rung"],
                    "arm": found["arms"][0],
                    "against": found["arms"][1],
                    "difference": found["difference"],
                    "low": low,
                    "high": high,
                    "p": found["p"],
                    "seeds": found["seeds"],
                    "smallest_effect": margin,
                    "conclusion": said.value,
                    **_crossed(found),
                }
            )
    if not rows:
        return None
    shown = [
        Interval(
            f"{row['rung']}: {row['arm']} − {row['against']}",
            *(row["difference"], row["low"], row["high"]),
            wide=None if row["rows"] is None else (row["crossed_low"], row["crossed_high"]),
        )
        for row in rows
    ]
    better = f"{'right' if study['higher_is_better'] else 'left'}: the first arm is better"
    told = "; ".join(f"{one.name} {one.value:+z.4f}" for one in shown)
    primary = str(study["primary"])
    picture = Picture(
        primary,
        f"Differences in {primary} at every rung, {better}: {told}",
        lambda axis: forest(axis, shown, x=f"difference ({better})"),
        height=1.3 + 0.26 * len(shown),
    )
    text = [
        f"{primary}, paired by seed, with 95 % intervals; equivalence by two one-sided tests at "
        f"the smallest effect that matters, {100 * study['smallest_effect']:g} % of the first "
        "arm's figure."
    ]
    if any(row["rows"] is not None for row in rows):
        text.append(
            "Crossed (the thin lines): the interval over fresh seeds and fresh rows of text at "
            "once, what it allows to be said, and the part of its variance that more seeds would "
            "lower. The plan decides by seeds."
        )
    title = "The figure that decides"
    return Section("study-differences", title, tuple(text), tuple(rows), (picture,))


def _crossed(found: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of a difference over seeds and rows at once; None where there is none."""
    crossed = found.get("crossed") or {}
    low, high = crossed.get("interval") or (None, None)
    return {
        "rows": crossed.get("rows"),
        "crossed_low": low,
        "crossed_high": high,
        "share_of_seeds": crossed.get("share_of_seeds"),
        "crossed_conclusion": crossed.get("conclusion"),
    }


def _arms(study: Mapping[str, Any]) -> Section:
    keys = (
        *("mean", "spread", "standard_error", "parameters", "training_flops", "tokens"),
        *("cache_bytes", "state_bytes", "seconds", "tokens_per_second"),
    )
    rows = tuple(
        {"rung": rung["rung"], "arm": arm, "seeds": len((entry or {}).get("seeds") or ())}
        | {key: (entry or {}).get(key) for key in keys}
        | {"diverged": entry is None}
        | {"tuned": json.dumps((entry or {}).get("tuned") or {})}
        | {"at_edge": ", ".join((entry or {}).get("at_edge") or ())}
        for rung in study["rungs"]
        for arm, entry in rung["arms"].items()
    )
    text = (
        f"Each arm with its own best settings; mean and spread are of {study['primary']}.",
        KEPT,
    )
    return Section("study-arms", "The arms at every rung", text, rows)


def _tuning(study: Mapping[str, Any]) -> Section | None:
    rows = tuple(
        {"rung": rung["rung"], "arm": arm, "values": json.dumps(tried["values"]), "figure": value}
        for rung in study["rungs"]
        for tried in (rung.get("tuning") or {}).get("tried") or ()
        for arm, value in tried["figures"].items()
    )
    text = ("Every value that was tried, scored on the tuning split.",)
    return Section("tuning", "Tuning", text, rows) if rows else None
