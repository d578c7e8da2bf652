"""The arms that the verdict does not name: each held against one arm, in every task.

The verdict credits a gain, for which it needs three arms: state, baseline and control. A run may
have many more (ablations, other kinds of heads), and the closing words speak of all of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wuneng.train.differences import ON_THESE_ROWS, difference
from wuneng.train.verdicts import figure, judged_names, length_of, verdict_can_be_given

__all__ = ["other_arms"]

_ALIKE, _BETTER, _WORSE = "no difference beyond noise", "better", "worse"


def other_arms(results: Mapping[str, Any], told: Collection[str], against: str) -> str:
    """A sentence about the arms that are not ``told`` of, each compared with ``against``; empty
    where there are none, or none that was scored on the same figures."""
    arms = results["arms"]
    others = [name for name in arms if name not in told and name != against]
    here = "" if verdict_can_be_given(arms) else ON_THESE_ROWS
    clauses = []
    for task, names in judged_names(arms[against]["quality"]).items():
        spoken = [text for arm in others if (text := _of_task(results, arm, against, names))]
        if spoken:
            clauses.append(f"{task}: {', '.join(spoken)}")
    return f"The other arms beside {against}{here}: {'; '.join(clauses)}." if clauses else ""


def _of_task(results: Mapping[str, Any], arm: str, against: str, names: Sequence[str]) -> str:
    """``no-middle 2.31 (better)``; lengths are told apart where they differ."""
    entry = results["arms"][arm]
    shared = [name for name in names if name in entry["quality"]]
    if not shared:
        return ""
    verdicts = {name: _verdict(results, arm, against, name) for name in shared}
    values = [_number(entry, name) for name in dict.fromkeys((shared[0], shared[-1]))]
    shown = " to ".join(dict.fromkeys(values))
    if len(set(verdicts.values())) == 1:
        return f"{arm} {shown} ({verdicts[shared[0]]})"
    parts = []
    for kind in (_BETTER, _WORSE, _ALIKE):
        lengths = [str(length_of(name)) for name in shared if verdicts[name] == kind]
        if lengths:
            parts.append(f"{kind} at {' and '.join(lengths)} tokens")
    return f"{arm} {shown} ({'; '.join(parts)})"


def _verdict(results: Mapping[str, Any], arm: str, against: str, name: str) -> str:
    found = difference(results, arm, against, name)
    if not found.gain:
        return _ALIKE
    return _BETTER if found.gain > 0 else _WORSE


def _number(entry: Mapping[str, Any], name: str) -> str:
    value = figure(entry, name)
    return f"{value.value:.2f}" if value.higher_is_better else f"{value.value:.3f}"
