"""The end of a run: the table of the arms, and what the figures do and do not show.

Both read results.json (as a dictionary) and nothing else, so a finished run can be shown again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from wuneng.tables import Column, Table
from wuneng.train.differences import ON_THESE_ROWS, Difference, difference, spelled
from wuneng.train.other_arms import other_arms
from wuneng.train.upgrade_summary import interval_rows, is_upgrade, upgrade_sentence
from wuneng.train.verdicts import (
    Arms,
    Figure,
    Gains,
    Kind,
    Verdict,
    figure,
    judge,
    judged_names,
    length_of,
    pick_arms,
    verdict_can_be_given,
)

__all__ = ["closing_sentence", "results_table"]

_SAME_SIZE = 0.01  # parameter counts within this share of each other count as equal


def results_table(results: Mapping[str, Any]) -> Table:
    """One column per arm: cost first, then every quality figure with its standard error."""
    arms = results["arms"]
    seeds = max((len(arm.get("seeds", ())) for arm in arms.values()), default=1)
    table = Table(
        results.get("name"),
        [Column("", name=True), *map(Column, arms)],
        caption=f"± standard error over {f'{seeds} seeds' if seeds > 1 else 'examples, one seed'}",
        turns=True,
    )
    rows: list[tuple[str, str, str]] = [
        ("parameters", "parameters", "{:,.0f}"),
        ("state and middle heads add", "added_percent", "{:.1f} %"),
        ("training FLOPs", "training_flops", "{:.2e}"),
        ("training tokens", "tokens", "{:,.0f}"),
        ("time (s)", "seconds", "{:,.1f}"),
        ("tokens/s", "tokens_per_second", "{:,.0f}"),
    ]
    frozen = (arm.get("trainable_parameters") != arm["parameters"] for arm in arms.values())
    if all("trainable_parameters" in arm for arm in arms.values()) and any(frozen):
        rows.insert(1, ("trainable parameters", "trainable_parameters", "{:,.0f}"))
    for title, key, pattern in rows:
        told = (pattern.format(arm[key]) if key in arm else "–" for arm in arms.values())
        table.add_row(title, *told)
    table.add_section()
    for name in dict.fromkeys(name for arm in arms.values() for name in arm["quality"]):
        table.add_row(name, *(_cell(arm, name) for arm in arms.values()))
    for title, cells in interval_rows(results):
        table.add_row(title, *cells)
    return table


def closing_sentence(results: Mapping[str, Any]) -> str:
    """What the figures show, credited by the rules of ``verdicts``, and what they do not; of runs
    that upgraded a model, by those of ``upgrade_summary``."""
    if is_upgrade(results):
        return upgrade_sentence(results)
    arms = results["arms"]
    picked = pick_arms(arms)
    if picked.state is None or picked.baseline is None:
        missing = "state heads" if picked.state is None else "plain attention"
        first = results.get("reference", next(iter(arms)))
        others = other_arms(results, (), first)
        nothing = "credited to the state" if others else "compared here"
        text = f"No arm with {missing} was trained, so nothing is {nothing}."
        return f"{text} {others}".rstrip()
    clauses, credited = [], verdict_can_be_given(arms)
    for task, names in judged_names(arms[picked.state]["quality"]).items():
        verdicts = _verdicts(results, picked, names)
        if verdicts:
            clauses.append(f"{task}: {_task_clause(picked, verdicts, credited)}")
    told = [name for name in (picked.baseline, picked.control) if name is not None]
    others = other_arms(results, told, picked.state)
    parts = ["; ".join(clauses) + "." if clauses else "", others, _limits(results, picked)]
    return " ".join(filter(None, parts))


@dataclass(frozen=True)
class _Judged:
    """A verdict, and the difference of state and baseline that it rests on."""

    verdict: Verdict
    difference: Difference

    @property
    def told_alike(self) -> tuple[object, ...]:
        """Neighbouring lengths with the same value are told together."""
        return self.verdict.kind, self.verdict.control_leads


def _verdicts(results: Mapping[str, Any], picked: Arms, names: Sequence[str]) -> list[_Judged]:
    """The verdicts on the figures ``names``."""
    assert picked.state is not None
    assert picked.baseline is not None
    arms = results["arms"]
    state, baseline = arms[picked.state], arms[picked.baseline]
    found = []
    for name in names:
        if name not in baseline["quality"]:
            continue
        between = difference(results, picked.state, picked.baseline, name)
        control, gains = None, Gains(between.gain)
        if picked.control and name in arms[picked.control]["quality"]:
            control = figure(arms[picked.control], name)
            gains = Gains(
                between.gain,
                difference(results, picked.state, picked.control, name).gain,
                difference(results, picked.control, picked.baseline, name).gain,
            )
        verdict = judge(
            name,
            figure(state, name),
            figure(baseline, name),
            control,
            state_mixes=_mixes(state),
            gains=gains,
        )
        found.append(_Judged(verdict, between))
    return found


def _task_clause(picked: Arms, judged: Sequence[_Judged], credited: bool) -> str:
    """The verdicts of one task, neighbouring lengths with the same verdict told together;
    ``credited``: whether there are seeds enough to say what a gain is due to."""
    runs = [list(group) for _, group in groupby(judged, key=lambda one: one.told_alike)]
    whole = len(runs) == 1
    return ", and ".join(_clause(picked, run, whole=whole, credited=credited) for run in runs)


def _clause(picked: Arms, judged: Sequence[_Judged], *, whole: bool, credited: bool) -> str:
    run = [one.verdict for one in judged]
    state = f"{picked.state} {_values([v.state for v in run])}"
    baseline = f"{picked.baseline} {_values([v.baseline for v in run])}"
    controls = [v.control for v in run if v.control is not None]
    control = f"{picked.control} {_values(controls)}" if controls else ""
    where = _where(run) if not whole or len(run) > 1 else ""
    apart = _apart(judged)
    told = ", ".join((state, baseline, *apart))
    reversed_ = ", ".join((baseline, state, *apart))
    here = "" if credited else ON_THESE_ROWS
    if apart:
        baseline += f" ({apart[0]})"
    text = {
        Kind.NONE: f"no difference beyond noise ({told})",
        Kind.BASELINE: f"plain attention is better{here} ({reversed_})",
        Kind.SHIFT: f"{state} against {baseline}{here}, but {control} as well",
        Kind.STATE: f"{state} against {baseline}{f' and {control}' if control else ''}{here}",
        Kind.BOTH: f"{state} against {baseline}{here}, with {control} in between",
        Kind.UNATTRIBUTED: f"{state} against {baseline}{here}",
    }[run[0].kind]
    if credited:
        text += _credit(run[0].kind, picked.mixing)
    if run[0].control_leads and run[0].kind is not Kind.SHIFT:
        text += f"; the control does better than the state arm ({control})"
    elif run[0].control_leads:
        text += f", and {picked.control} is the better of the two"
    return f"{where}{text}"


def _credit(kind: Kind, mixing: str) -> str:
    """To what the gain is due, where several seeds let that be said."""
    return {
        Kind.SHIFT: f", so the gain is the {mixing}'s and not the state's",
        Kind.STATE: ", so the gain is credited to the state heads as configured",
        Kind.BOTH: f": part of the gain is the {mixing}'s, the rest is credited to the state heads "
        "as configured",
        Kind.UNATTRIBUTED: f"; without a control arm the gain cannot be divided between {mixing} "
        "and state",
    }.get(kind, "")


def _mixes(state: Mapping[str, Any]) -> bool:
    """Whether the state arm mixes neighbouring tokens, by which alone it may gain."""
    return bool(state.get("token_shift", True) or state.get("short_conv", False))


def _apart(judged: Sequence[_Judged]) -> list[str]:
    """The paired difference of a figure that is told alone; of several lengths the table tells."""
    found = judged[0].difference
    if len(judged) > 1 or found.interval is None:
        return []
    return [spelled(found) + (f" over {found.paired}" if found.paired else "")]


def _where(run: Sequence[Verdict]) -> str:
    lengths = [length_of(v.name) for v in run]
    if not any(lengths):
        return ""
    if len(lengths) == 1:
        return f"at {lengths[0]} tokens "
    return f"from {lengths[0]} to {lengths[-1]} tokens "


def _values(figures: Sequence[Figure]) -> str:
    first, last = (_number(figures[0]), _number(figures[-1]))
    return first if len(figures) == 1 or first == last else f"{first} to {last}"


def _number(value: Figure) -> str:
    return f"{value.value:.2f}" if value.higher_is_better else f"{value.value:.3f}"


def _limits(results: Mapping[str, Any], picked: Arms) -> str:
    """The second sentence: what keeps the figures from saying more."""
    arms = results["arms"]
    state, baseline = arms[picked.state], arms[picked.baseline]
    seeds = len(state.get("seeds", ())) or 1
    scale = f"{_count(state['parameters'])} parameters and {_count(state['tokens'])} tokens"
    text = (
        f"This is one seed at {scale}: how much another seed would change was not measured, so no "
        "verdict can be given and nothing is credited (several, as `seed: [0, 1, 2]`, can)"
        if seeds == 1
        else f"These are means over {seeds} seeds at {scale}; they say nothing about larger scales"
    )
    if picked.control is None and _mixes(state):
        text += (
            f"; no control arm (plain attention with the {picked.mixing}, {picked.usual_control}) "
            "was trained, so nothing is credited to the state"
        )
    apart = baseline["parameters"] / state["parameters"] - 1
    if abs(apart) > _SAME_SIZE:
        text += (
            f"; {picked.baseline} has {abs(apart):.1%} {'more' if apart > 0 else 'fewer'} "
            f"parameters than {picked.state}"
        )
    return text + "."


def _cell(arm: Mapping[str, Any], name: str) -> str:
    value = arm["quality"].get(name)
    if value is None:
        return "–"
    error = arm.get("standard_error", {}).get(name, 0.0)
    return f"{value:.3f} ± {error:.3f}"


def _count(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"
