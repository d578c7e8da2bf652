"""Rules that turn the arms' figures into a verdict: who gained, and to what the gain is credited.

Three arms take part: the *state* arm (attention plus state heads), the *baseline* (plain attention)
and the *control* (plain attention with the state arm's token shift on its keys and values). Some
gains come with the shift alone, so a gain counts for the state heads only where the control does
not have it:

    NONE           state and baseline differ by no more than noise
    BASELINE       the baseline is better
    SHIFT          the state arm is better, and the control has (nine tenths of) the gain as well
    STATE          the state arm is better, and the control is hardly better than the baseline
    BOTH           the control lies between the two
    UNATTRIBUTED   the state arm is better, and no control was trained

Whether two arms differ by more than noise, ``differences`` says, from the difference of the two on
the same rows or over the same seeds. Where nothing was paired, noise is two standard errors of the
difference. With several seeds those errors are the measured spread from seed to seed. The errors of
one seed are over its rows and know nothing of how much another seed would have moved: what they
show is told for these rows, and nothing is credited to anything (`verdict_can_be_given`).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Arms",
    "Figure",
    "Gains",
    "Kind",
    "Verdict",
    "better_by",
    "figure",
    "judge",
    "judged_names",
    "length_of",
    "pick_arms",
    "verdict_can_be_given",
]

HYBRID, ATTENTION, SHIFTED_ATTENTION, CONVOLVED_ATTENTION, STATE_ONLY = (
    "hybrid",
    "attention",
    "shifted attention",
    "convolved attention",
    "state only",
)
"""What an arm is, in ``arms.<arm>.kind`` of results.json."""

_NEARLY_ALL = 0.9  # a control with this share of the gain explains it


class Kind(enum.Enum):
    """To what a gain is credited."""

    NONE = "none"
    BASELINE = "baseline"
    SHIFT = "shift"
    STATE = "state"
    BOTH = "both"
    UNATTRIBUTED = "unattributed"


@dataclass(frozen=True)
class Arms:
    """The names of the arms that take part; None where the recipe has no such arm."""

    state: str | None
    baseline: str | None
    control: str | None
    mixing: str = "token shift"
    """How the state arm mixes neighbouring tokens, which the control has as well."""
    usual_control: str = "mha-shift"
    """The built-in arm that is such a control."""


@dataclass(frozen=True)
class Figure:
    """A quality figure of one arm."""

    value: float
    standard_error: float
    higher_is_better: bool


@dataclass(frozen=True)
class Gains:
    """How much better the first of two arms is, 0.0 within noise; None without a control."""

    state_over_baseline: float
    state_over_control: float | None = None
    control_over_baseline: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on one quality figure; ``control_leads``: the control beats the state arm."""

    name: str
    kind: Kind
    state: Figure
    baseline: Figure
    control: Figure | None
    control_leads: bool = False


def pick_arms(arms: Mapping[str, Mapping[str, Any]]) -> Arms:
    """The first arm of each kind, by the ``kind`` that results.json records.

    The control mixes neighbouring tokens as the state arm does: by a token shift, or by a short
    convolution where the state arm has that alone.
    """

    def first(kind: str) -> str | None:
        return next((name for name, arm in arms.items() if arm["kind"] == kind), None)

    state = first(HYBRID)
    facts = {} if state is None else arms[state]
    if facts.get("short_conv", False) and facts.get("token_shift", True):
        # No built-in control has both, and one that has the shift alone would flatter the state.
        both = "token shift and the short convolution"
        return Arms(state, first(ATTENTION), None, both, "with both")
    if facts.get("short_conv", False):
        control = first(CONVOLVED_ATTENTION)
        return Arms(state, first(ATTENTION), control, "short convolution", "mha-conv")
    return Arms(state, first(ATTENTION), first(SHIFTED_ATTENTION))


def judged_names(quality: Mapping[str, float]) -> dict[str, list[str]]:
    """Task -> the figures that are judged: accuracies by length, or the best text figure."""
    tasks: dict[str, list[str]] = {}
    for name in quality:
        task, _, figure = name.partition("/")
        if figure.startswith("accuracy@"):
            tasks.setdefault(task, []).append(name)
    for name in quality:
        task, _, figure = name.partition("/")
        if task not in tasks and figure in ("bits_per_byte", "loss"):
            wanted = f"{task}/bits_per_byte"
            tasks[task] = [wanted if wanted in quality else name]
    for names in tasks.values():
        names.sort(key=length_of)
    return tasks


def verdict_can_be_given(arms: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the spread from seed to seed was measured: an arm was trained from several."""
    return any(len(arm.get("seeds", ())) > 1 for arm in arms.values())


def length_of(name: str) -> int:
    """The length in ``task/accuracy@256``; 0 where a name carries none."""
    found = re.search(r"@(\d+)$", name)
    return int(found.group(1)) if found else 0


def figure(arm: Mapping[str, Any], name: str) -> Figure:
    """One figure of an arm of results.json, its standard error made honest.

    A task answered without one mistake has a naive standard error of 0; add-one smoothing over
    its ``examples`` bounds it from below. Over several seeds the spread between seeds counts; the
    error of one seed is over its rows alone.
    """
    stored = arm["quality"][name]
    value = math.nan if stored is None else float(stored)
    error = float(arm.get("standard_error", {}).get(name, 0.0))
    accuracy = "/accuracy@" in name
    examples = arm.get("examples", {}).get(name, 0)
    if accuracy and examples:
        smoothed = (value * examples + 1) / (examples + 2)
        error = max(error, math.sqrt(smoothed * (1 - smoothed) / examples))
    seeds = len(arm.get("seeds", ())) or 1
    if seeds > 1:
        error = max(error, float(arm["quality_std"][name]) / math.sqrt(seeds))
    elif examples == 1 and not accuracy:  # one row: nothing is known of another
        error = math.inf
    return Figure(value, error, higher_is_better=accuracy)


def better_by(one: Figure, other: Figure) -> float:
    """How much better ``one`` is than ``other``; 0.0 when the difference is within noise.

    Negative when ``other`` is better. NaN never counts as better.
    """
    gain = one.value - other.value if one.higher_is_better else other.value - one.value
    noise = 2 * math.hypot(one.standard_error, other.standard_error)
    return gain if abs(gain) > noise else 0.0


def judge(
    name: str,
    state: Figure,
    baseline: Figure,
    control: Figure | None,
    *,
    state_mixes: bool,
    gains: Gains | None = None,
) -> Verdict:
    """The verdict on one figure. A state arm that mixes no neighbours owes nothing to it.

    ``gains`` are those of paired differences; by default the figures' own errors decide.
    """
    if gains is None:
        gains = _unpaired(state, baseline, control)
    leads = gains.state_over_control is not None and gains.state_over_control < 0
    return Verdict(name, _kind(gains, state_mixes), state, baseline, control, leads)


def _unpaired(state: Figure, baseline: Figure, control: Figure | None) -> Gains:
    gain = better_by(state, baseline)
    if control is None:
        return Gains(gain)
    return Gains(gain, better_by(state, control), better_by(control, baseline))


def _kind(gains: Gains, state_mixes: bool) -> Kind:
    gain = gains.state_over_baseline
    if gain == 0:
        return Kind.NONE
    if gain < 0:
        return Kind.BASELINE
    if not state_mixes:
        return Kind.STATE
    if gains.state_over_control is None or gains.control_over_baseline is None:
        return Kind.UNATTRIBUTED
    by_shift = gains.control_over_baseline
    if gains.state_over_control <= 0 or by_shift >= _NEARLY_ALL * gain:
        return Kind.SHIFT
    return Kind.BOTH if by_shift > (1 - _NEARLY_ALL) * gain else Kind.STATE
