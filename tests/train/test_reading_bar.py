"""How far the tokenising is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest

from wuneng.foreign.terminal import PlainConsole
from wuneng.train import display
from wuneng.train.display import PanelDisplay, PlainDisplay, QuietDisplay


def test_a_bar_on_a_terminal_which_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    panel = PanelDisplay(PlainConsole(file=stream, width=90))
    panel.reading("novels.jsonl.gz", 0.37)
    panel._bar._progress.refresh()  # type: ignore[union-attr]
    shown = stream.getvalue()
    assert "tokenising novels.jsonl.gz" in shown
    assert "37%" in shown
    panel.reading("novels.jsonl.gz", 1.0)
    assert panel._bar is None
    panel.close()


def test_a_line_now_and_then_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.0, 1.0, 20.0, 20.0, 21.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(seconds))
    stream = io.StringIO()
    plain = PlainDisplay(stream)
    for share in (0.1, 0.2, 0.3):
        plain.reading("a.jsonl", share)
    assert stream.getvalue() == "tokenising a.jsonl: 20%\n"
    quiet = io.StringIO()
    QuietDisplay(quiet).reading("a.jsonl", 0.5)
    assert quiet.getvalue() == ""
