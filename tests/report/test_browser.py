"""The page in a browser, where there is one: no complaint, no sideways scrolling, both themes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.report.made_up_study import write_study
from wuneng.report import build_report, write_report
from wuneng.report.records import read_family

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")
# What the page may not do itself: the test's copy measures it, in a frame of the wanted width,
# for no window of the browser is narrower than 500.
MEASURE = """<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth,
  matchMedia('(prefers-color-scheme: dark)').matches, getComputedStyle(document.body).color,
  performance.getEntriesByType('resource').length].join('|'), '*')</script>"""
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><title></title><script>
  addEventListener('message', message => {{ document.title = message.data }})</script>
  <iframe src="page.html" width="{width}" height="900" style="border: 0"></iframe>"""


def browse(page: Path, width: int, dark: bool, *arguments: str) -> subprocess.CompletedProcess[str]:
    theme = "--blink-settings=preferredColorScheme=" + ("0" if dark else "1")
    return subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}", theme),
            *(f"--window-size={width},1000", *arguments, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=250,
        check=True,
    )


@pytest.fixture(scope="session")
def pages(reported: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By what it is about."""
    study = tmp_path_factory.mktemp("studied") / "study"
    write_study(study)
    return {
        "run": reported / "report.html",
        "study": write_report(build_report(read_family(study)), study),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(400, True), (1400, False)])
@pytest.mark.parametrize("of", ["run", "study"])
def test_a_browser_shows_it(
    pages: dict[str, Path], tmp_path: Path, of: str, width: int, dark: bool
) -> None:
    text = pages[of].read_text(encoding="utf-8")
    measured = text.replace("</body>", f"{MEASURE}</body>")
    (tmp_path / "page.html").write_text(measured, encoding="utf-8")
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width=width), encoding="utf-8")
    shown = browse(page, width, dark, "--virtual-time-budget=5000", "--dump-dom")
    assert "CONSOLE" not in shown.stderr
    found = re.search(r"<title>([^<]*)</title>", shown.stdout)
    assert found is not None
    inner, outer, theme, colour, requests = found[1].split("|")
    assert int(inner) <= int(outer) == width
    assert theme == str(dark).lower()
    assert colour == ("rgb(230, 230, 230)" if dark else "rgb(27, 29, 32)")
    assert requests == "0"
