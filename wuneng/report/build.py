"""Which sections a directory has: each is left out where its records are not there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from wuneng.errors import DataError, file_errors
from wuneng.report.answer import answer
from wuneng.report.arms import costs, differing_settings, lengths, quality
from wuneng.report.controls import controls, heads
from wuneng.report.curves import curves, tokens
from wuneng.report.differences import ablations, differences
from wuneng.report.levels import levels
from wuneng.report.pareto import pareto
from wuneng.report.records import Records
from wuneng.report.section import Section
from wuneng.report.setting import command, environment
from wuneng.report.speed import speed
from wuneng.report.study import study_sections
from wuneng.report.sweep import sweep
from wuneng.report.tasks import evaluations
from wuneng.report.timed import with_benchmarks

__all__ = ["Part", "Report", "build_report"]

#: In the order of the page, around those of a study and of evaluations.
_FIRST = (tokens, curves, lengths, differences, ablations, quality, costs, pareto, sweep)
_LAST = (levels, controls, heads, speed, differing_settings, environment)


@dataclass(frozen=True)
class Part:
    """One directory's sections."""

    records: Records
    sections: tuple[Section, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """What a report may show and this directory has no record of."""
        if self.records.study is not None or self.records.sweep is not None:
            return ()  # the runs below it have them
        have = {section.key for section in self.sections}
        wanted = {
            "curves": "learning curves",
            "tokens-saved": "tokens saved",
            "lengths": "accuracy against length",
            "differences": "paired differences",
            "tasks": "evaluation tasks",
            "controls": "controls",
            "heads": "a map of heads",
            "speed": "speed and memory",
        }
        return tuple(words for key, words in wanted.items() if key not in have)


@dataclass(frozen=True)
class Report:
    """One part for each directory, in the order given."""

    parts: tuple[Part, ...]

    @property
    def title(self) -> str:
        """The names of what is reported."""
        return ", ".join(part.records.name for part in self.parts)


def build_report(records: Sequence[Records]) -> Report:
    """The report on some directories.

    Raises:
        DataError: a record is not one; the directory is named.
    """
    parts = []
    for one in with_benchmarks(records):
        with file_errors(f"{one.path}: its records are not as this version writes them", DataError):
            parts.append(Part(one, tuple(_sections(one))))
    return Report(tuple(parts))


def _sections(records: Records) -> Iterator[Section]:
    made_by = command(records)
    found = [answer(records), *study_sections(records)]
    found += [section(records) for section in _FIRST]
    found += [*evaluations(records), *(section(records) for section in _LAST)]
    for section in found:
        if section is not None:
            yield section if section.command else replace(section, command=made_by)
