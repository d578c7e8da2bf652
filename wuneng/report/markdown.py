"""The report as Markdown, for an appendix: the same words and numbers, no pictures."""

from __future__ import annotations

from collections.abc import Iterator

from wuneng.foreign.markdown import code_span
from wuneng.foreign.markdown import markdown_text as text
from wuneng.report.build import Report
from wuneng.report.section import Section, number

__all__ = ["markdown_page"]


def markdown_page(report: Report) -> str:
    """The whole text."""
    lines = [f"# {text(report.title)}", ""]
    for part in report.parts:
        if len(report.parts) > 1:
            lines += [f"## {text(part.records.name)}", ""]
        lines += [text(part.records.path), ""]
        for section in part.sections:
            lines += _section(section, "###" if len(report.parts) > 1 else "##")
        if part.missing:
            lines += [f"Not in these records: {text(', '.join(part.missing))}.", ""]
    return "\n".join(lines)


def _section(section: Section, heading: str) -> Iterator[str]:
    yield from (f"{heading} {text(section.title)}", "")
    for line in section.text:
        yield from (text(line), "")
    for picture in section.pictures:
        yield from (f"*{text(picture.alt)}.*", "")
    if section.rows:
        keys = [k for k in section.rows[0] if any(row.get(k) is not None for row in section.rows)]
        yield f"| {' | '.join(text(key.replace('_', ' ')) for key in keys)} |"
        yield f"|{'---|' * len(keys)}"
        for row in section.rows:
            yield f"| {' | '.join(text(number(row.get(key))) for key in keys)} |"
        yield ""
    if section.command:
        yield from (f"Records: {code_span(section.command)}", "")
