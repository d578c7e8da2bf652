"""The page's style sheet: light and dark as the reader has it, one column on a phone, printable."""

from __future__ import annotations

from wuneng.report.svg import DARK

__all__ = ["style_sheet"]

_SHEET = """
:root { color-scheme: light dark; --ink: #1b1d20; --soft: #5a5f66; --page: #ffffff;
  --card: #f6f7f9; --line: #d9dce1; --accent: #0072b2; LIGHT_SERIES }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #a5abb3; --page: #15171a;
  --card: #1e2125; --line: #3a3e45; --accent: #6ab8e8; DARK_SERIES } }
@media print { :root { --ink: #000; --soft: #444; --page: #fff; --card: #fff; --line: #bbb;
  --accent: #004f7d; LIGHT_SERIES } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 64px; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 40px 0 8px; }
h3 { font-size: 1.05rem; margin: 28px 0 4px; }
p { margin: 6px 0; max-width: 78ch; }
a { color: var(--accent); }
.quiet, summary { color: var(--soft); font-size: 0.875rem; }
.answer { background: var(--card); border-left: 4px solid var(--accent); padding: 12px 16px;
  margin: 16px 0; }
.answer p:first-child { font-size: 1.1rem; font-weight: 600; }
nav ul { display: flex; flex-wrap: wrap; gap: 4px 16px; list-style: none; padding: 0; margin: 8px 0;
  font-size: 0.9rem; }
.figures { display: grid; gap: 16px; margin: 12px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; padding: 8px; background: var(--card); border-radius: 6px; max-width: 620px; }
figure svg { display: block; width: 100%; height: auto; }
details { margin: 8px 0; }
summary { cursor: pointer; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 6px 0; overflow-wrap: normal; }
th, td { padding: 3px 10px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; white-space: nowrap; }
td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; }
td.words { white-space: normal; overflow-wrap: anywhere; min-width: 12ch; }
code { font-size: 0.85em; background: var(--card); padding: 1px 4px; border-radius: 3px; }
@media print {
  nav { display: none; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .wide { overflow: visible; }
  th, td { white-space: normal; padding: 2px 5px; }
}
"""


def style_sheet() -> str:
    """CSS with the series' colours as variables, ``--c0072b2`` for ``#0072b2``."""
    light = " ".join(f"--c{colour[1:]}: {colour};" for colour in DARK)
    dark = " ".join(f"--c{colour[1:]}: {other};" for colour, other in DARK.items())
    return _SHEET.replace("LIGHT_SERIES", light).replace("DARK_SERIES", dark)
