"""The report as one HTML page: no script, no link outside, everything of the records escaped."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from wuneng.foreign.text import shown_line
from wuneng.report.build import Part, Report
from wuneng.report.section import Section, number
from wuneng.report.style import style_sheet
from wuneng.report.svg import inline_svg

__all__ = ["html_page"]

_FEW_ROWS = 12
_OPEN = ("differences", "tokens-saved", "study-tokens-saved", "costs", "settings")


def html_page(report: Report) -> str:
    """The whole page."""
    title = text(f"{report.title}: report")
    head = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title><style>{style_sheet()}</style></head><body><main>",
        f"<header><h1>{text(report.title)}</h1>",
        '<p class="quiet">Made by <code>wuneng report</code> from the records alone. The numbers '
        "of every picture are in the tables below it, in report.json and, a file for each "
        "section, in report-data/.</p></header>",
    ]
    body = [line for place, part in enumerate(report.parts) for line in _part(part, place, report)]
    return "\n".join([*head, *body, "</main></body></html>", ""])


def text(value: object) -> str:
    """What others wrote, harmless in HTML."""
    return escape(shown_line(str(value)), quote=True)


def _part(part: Part, place: int, report: Report) -> Iterator[str]:
    several = len(report.parts) > 1
    prefix = f"r{place}-"
    if several:
        yield f'<h2 id="{prefix}top">{text(part.records.name)}</h2>'
    yield f'<p class="quiet">{text(part.records.path)}</p>'
    for section in part.sections:
        if section.key == "answer":
            paragraphs = "".join(f"<p>{text(line)}</p>" for line in section.text)
            yield f'<div class="answer" id="{prefix}answer">{paragraphs}</div>'
    rest = [section for section in part.sections if section.key != "answer"]
    links = (f'<li><a href="#{prefix}{s.key}">{text(s.title)}</a></li>' for s in rest)
    yield f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>'
    for section in rest:
        yield from _section(section, prefix, "h3" if several else "h2")
    if part.missing:
        yield f'<p class="quiet">Not in these records: {text(", ".join(part.missing))}.</p>'


def _section(section: Section, prefix: str, heading: str) -> Iterator[str]:
    key = f"{prefix}{section.key}"
    yield f'<section aria-labelledby="{key}">'
    yield f'<{heading} id="{key}">{text(section.title)}</{heading}>'
    yield from (f"<p>{text(line)}</p>" for line in section.text)
    if section.pictures:
        yield '<div class="figures">'
        for number_, picture in enumerate(section.pictures):
            svg = inline_svg(picture, f"{key}-{number_}")
            yield f"<figure>{svg}</figure>"
        yield "</div>"
    if section.rows:
        yield from _numbers(section)
    if section.command and section.key != "environment":
        yield "<details><summary>Command</summary>"
        yield f"<p><code>{text(section.command)}</code></p></details>"
    yield "</section>"


def _numbers(section: Section) -> Iterator[str]:
    opened = " open" if section.key in _OPEN or len(section.rows) <= _FEW_ROWS else ""
    yield f"<details{opened}><summary>Numbers ({len(section.rows)} rows)</summary>"
    keys = [key for key in section.rows[0] if any(row.get(key) is not None for row in section.rows)]
    heads = "".join(_heading(key, [row.get(key) for row in section.rows]) for key in keys)
    label = text(f"Numbers of: {section.title}")
    yield f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
    yield f"<table><thead><tr>{heads}</tr></thead><tbody>"
    for row in section.rows:
        yield f"<tr>{''.join(_cell(row.get(key)) for key in keys)}</tr>"
    yield "</tbody></table></div></details>"


def _heading(key: str, values: list[Any]) -> str:
    known = [value for value in values if value is not None]
    figures = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known)
    kind = ' class="figure"' if figures else ""
    return f'<th scope="col"{kind}>{text(key.replace("_", " "))}</th>'


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="figure">{text(number(value))}</td>'
    words = ' class="words"' if isinstance(value, str) and len(value) > 40 else ""
    return f"<td{words}>{text(number(value))}</td>"
