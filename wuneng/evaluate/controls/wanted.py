"""``--controls``: from what a user writes to the controls that a model is put under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wuneng.controls import switch
from wuneng.controls.names import COUNTED, STATE_CONTROLS, Control, parse_control
from wuneng.errors import InputError, ModelError

__all__ = ["ALL", "Wanted", "controls_for", "parse_controls"]

ALL = (*STATE_CONTROLS, "attention", "heads")
_FACTOR = 4  # from one length of a curve to the next


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        controls: in order; "frozen" and "reset" without a number stand for a curve, "heads" for
            every head alone.
        whatever_fits: leave out what a model has not, instead of refusing it.
    """

    controls: tuple[Control, ...]
    whatever_fits: bool


def parse_controls(text: str) -> Wanted:
    """``all``, or names of :data:`ALL` separated by commas. InputError for anything else."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InputError(f"--controls: expected all, or some of {', '.join(ALL)}, got {text!r}")
    if "all" in names:
        if len(names) > 1:
            raise InputError(f"--controls: all stands alone, got {text!r}")
        return Wanted(tuple(map(Control, ALL)), whatever_fits=True)
    controls = [parse_control(name, "--controls", (*ALL, "all")) for name in names]
    return Wanted(tuple(dict.fromkeys(controls)), whatever_fits=False)


def controls_for(
    model: Any,
    wanted: Wanted,
    longest: int,
    why_not: Callable[[Control], str | None] | None = None,
) -> tuple[list[Control], list[str]]:
    """The controls that a model is put under, and remarks on those that do not fit it.

    Args:
        why_not: why a control cannot be; by default as the model says.
        longest: tokens of the longest text; a curve's lengths are the powers of four below it.

    Raises:
        ModelError: one that was named does not fit, or none does.
    """
    found: list[Control] = []
    remarks = []
    for control in wanted.controls:
        heads = switch.heads_of(model)
        reason = why_not(control) if why_not else switch.why_not(model, control)
        if control.kind == "heads" and not heads:
            reason = "the model has no heads of this package's kind"
        if reason is not None:
            if not wanted.whatever_fits:
                raise ModelError(f"--controls {control}: {reason}.")
            remarks.append(f"{control} is left out: {reason}.")
        elif control.kind == "heads":
            found += [Control("head", head=head) for head in heads]
        elif control.kind in COUNTED and control.tokens is None:
            found += [Control(control.kind, tokens) for tokens in _curve(longest)]
        else:
            found.append(control)
    if not found:
        raise ModelError(f"--controls: none fits this model. {' '.join(remarks)}")
    return list(dict.fromkeys(found)), remarks


def _curve(longest: int) -> list[int]:
    lengths = [1]
    while lengths[-1] * _FACTOR < longest:
        lengths.append(lengths[-1] * _FACTOR)
    return lengths
