"""A page about one run or several: what the records say, and nothing that they do not.

Read in this order: `records` (what a directory holds), `section` (a heading, some words, rows of
numbers and pictures), the sections themselves (`answer`, `curves`, `arms`, `differences`, `tasks`,
`controls`, `speed`, `setting`), `build` (which of them a directory has), `svg`, `page`, `markdown`
and `write`.
"""

from wuneng.report.build import Report, build_report
from wuneng.report.write import write_curves, write_curves_below, write_report

__all__ = ["Report", "build_report", "write_curves", "write_curves_below", "write_report"]
