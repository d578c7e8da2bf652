"""The members of ``wuneng-suite``, by name."""

from __future__ import annotations

from wuneng.evaluate.suite.question import Form
from wuneng.evaluate.suite.recall_forms import RECALL_FORMS
from wuneng.evaluate.suite.state_forms import STATE_FORMS

__all__ = ["FORMS", "MEMBERS", "NEEDLE", "SUITE", "suite_members"]

#: The group; a member is called ``wuneng-suite-parity``.
SUITE = "wuneng-suite"
#: The member whose length is counted in tokens of a tokenizer.
NEEDLE = f"{SUITE}-needle"

FORMS: dict[str, Form] = {
    f"{SUITE}-{name}": form for name, form in {**STATE_FORMS, **RECALL_FORMS}.items()
}
MEMBERS = (*FORMS, NEEDLE)


def suite_members(name: str) -> tuple[str, ...]:
    """The members that a name stands for: all of the group, one, or none if it is neither."""
    if name == SUITE:
        return MEMBERS
    return (name,) if name in MEMBERS else ()
