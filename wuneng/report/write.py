"""The files of a report: the page, every number of it as JSON and CSV, and a run's curves."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any, Literal

from wuneng.errors import DataError, WuNengError, file_errors
from wuneng.pictures import drawing
from wuneng.records import (
    disk_errors,
    refuse_links,
    usable_directory,
    write_bytes_atomic,
    write_json,
    write_text_atomic,
)
from wuneng.report.build import Report
from wuneng.report.curves import curves
from wuneng.report.markdown import markdown_page
from wuneng.report.page import html_page
from wuneng.report.records import Records, read_records, runs_below
from wuneng.report.section import Section
from wuneng.report.svg import drawn

__all__ = ["report_record", "write_curves", "write_curves_below", "write_report"]

Format = Literal["html", "md"]
DATA = "report-data"
_SUFFIXES = ("png", "svg")


def write_report(report: Report, directory: Path, form: Format = "html") -> Path:
    """Write ``report.html`` (or Markdown), ``report.json`` and ``report-data/*.csv``; returns the
    page's path. CSV files of an earlier report are removed.

    Raises:
        DataError: a record has a value that is not what it should be.
        DiskError: the disk is full or refuses.
        InputError: ``report-data`` is a symbolic link or no directory.
    """
    page = directory / f"report.{form}"
    with file_errors(f"{report.title}: records with values that cannot be shown", DataError):
        content = html_page(report) if form == "html" else markdown_page(report)
    write_text_atomic(page, content)
    write_json(directory / "report.json", report_record(report))
    data = directory / DATA
    refuse_links(data)
    usable_directory(data, "--out")
    with disk_errors(data):
        for old in data.glob("*.csv"):
            old.unlink(missing_ok=True)
    for place, part in enumerate(report.parts):
        for section in part.sections:
            if section.rows:
                prefix = f"{place + 1}-" if len(report.parts) > 1 else ""
                write_text_atomic(data / f"{prefix}{section.key}.csv", csv_text(section))
    return page


def report_record(report: Report) -> dict[str, Any]:
    """Every word and number of the report, schema 1."""
    return {
        "schema": 1,
        "parts": [
            {
                "directory": str(part.records.path),
                "name": part.records.name,
                "missing": list(part.missing),
                "sections": [
                    {
                        "key": section.key,
                        "title": section.title,
                        "text": list(section.text),
                        "rows": [dict(row) for row in section.rows],
                        "pictures": [
                            {"title": one.title, "alt": one.alt} for one in section.pictures
                        ],
                        "command": section.command,
                    }
                    for section in part.sections
                ],
            }
            for part in report.parts
        ],
    }


def csv_text(section: Section) -> str:
    """The section's rows; an empty cell where there is no number."""
    found = io.StringIO()
    writer = csv.DictWriter(found, list(section.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(section.rows)
    return found.getvalue()


def write_curves(records: Records) -> list[Path]:
    """Write the learning curves as ``curves.png`` and ``curves.svg`` into the run's directory;
    returns their paths, none where there are no curves.

    Raises:
        DataError: metrics.jsonl has values that are none.
        DiskError: the disk is full or refuses.
    """
    with file_errors(f"{records.path}: its learning curves cannot be drawn", DataError):
        return _write_curves(records)


def write_curves_below(records: Records) -> list[WuNengError]:
    """The same for the runs that a study tuned with and the points of a sweep, each into its own
    directory, where a picture is missing or older than the metrics; returns what kept some of them
    from being drawn."""
    problems = []
    for place in runs_below(records):
        try:
            if _has_news(place):
                write_curves(read_records(place, check=False))
        except WuNengError as error:
            problems.append(error)
    return problems


def _has_news(place: Path) -> bool:
    """Whether there are metrics that the picture of a directory does not show."""
    files = [*place.glob("*/metrics.jsonl"), *place.glob("*/seed-*/metrics.jsonl")]
    newest = max((file.stat().st_mtime for file in files), default=0.0)
    pictures = [place / f"curves.{suffix}" for suffix in _SUFFIXES]
    return bool(files) and not all(x.is_file() and x.stat().st_mtime >= newest for x in pictures)


def _write_curves(records: Records) -> list[Path]:
    section = curves(records)
    if section is None:
        return []
    written = []
    for suffix in _SUFFIXES:
        with drawing():
            content = drawn(list(section.pictures), suffix)
        path = records.path / f"curves.{suffix}"
        write_bytes_atomic(path, content)
        written.append(path)
    return written
