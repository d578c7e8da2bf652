"""``wuneng-suite``: the generated tasks as text under lm-evaluation-harness, without network."""

from __future__ import annotations

from wuneng.evaluate.suite.members import MEMBERS, NEEDLE, SUITE, suite_members
from wuneng.evaluate.suite.needle_form import NEEDLE_LENGTHS
from wuneng.evaluate.suite.writing import write_member

__all__ = ["MEMBERS", "NEEDLE", "NEEDLE_LENGTHS", "SUITE", "suite_members", "write_member"]
