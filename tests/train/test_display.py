"""Plain lines, quiet mode, the panel, and loggers that are not installed."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from rich.console import Console

from wuneng.errors import InputError
from wuneng.train import loggers
from wuneng.train.display import (
    PanelDisplay,
    PlainDisplay,
    Progress,
    QuietDisplay,
    make_display,
)


def progress(**changes: Any) -> Progress:
    values: dict[str, Any] = {
        "arm": "wuneng",
        "seed": 0,
        "step": 10,
        "total_steps": 400,
        "loss": 3.21,
        "learning_rate": 1e-3,
        "grad_norm": 0.52,
        "tokens_per_second": 12_345.0,
        "seconds_left": 3725.0,
        "logged": True,
    }
    return Progress(**{**values, **changes})


def test_a_plain_line_has_every_figure() -> None:
    stream = io.StringIO()
    PlainDisplay(stream).stepped(progress(validation={"recall/accuracy@32": 0.125}))
    assert stream.getvalue() == (
        "wuneng  step 10/400  loss 3.2100  lr 1.00e-03  grad 0.52  12.3k tok/s  eta 1:02:05  "
        "recall/accuracy@32 0.1250\n"
    )


def test_steps_that_are_not_logged_have_no_line() -> None:
    stream = io.StringIO()
    PlainDisplay(stream).stepped(progress(logged=False))
    assert stream.getvalue() == ""


def test_quiet_mode_still_warns() -> None:
    stream = io.StringIO()
    display = QuietDisplay(stream)
    display.stepped(progress())
    display.note("an arm begins")
    display.warn("a checkpoint is damaged")
    display.close()
    assert stream.getvalue() == "warning: a checkpoint is damaged\n"


def test_the_display_follows_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    plain = make_display()
    assert type(plain) is PlainDisplay
    plain.note("to stdout")
    make_display(to_stderr=True).note("to stderr")
    assert capsys.readouterr() == ("to stdout\n", "to stderr\n")
    assert type(make_display(quiet=True)) is QuietDisplay


def test_a_terminal_gets_a_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert type(make_display()) is PanelDisplay


def test_the_panel_shows_every_figure_and_goes_away() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=100)
    display = PanelDisplay(console)
    display.stepped(progress(validation={"recall/loss": 1.5}))
    display.stepped(progress(step=11))  # the validation figure stays until the next one
    display.warn("[odd] brackets")
    display.close()
    display.close()
    text = stream.getvalue()
    for wanted in (
        *("wuneng", "11 / 400", "3.2100", "1.00e-03", "0.52", "12.3k tokens/s", "1:02:05"),
        *("recall/loss", "1.5000", "warning: [odd] brackets"),
    ):
        assert wanted in text
    assert "\x1b[?25h" in text, "the cursor stays hidden"


def test_a_new_arm_starts_without_the_old_ones_validation() -> None:
    stream = io.StringIO()
    display = PanelDisplay(Console(file=stream, force_terminal=True, width=100))
    display.stepped(progress(validation={"recall/loss": 1.5}))
    display.stepped(progress(arm="mha", step=1))
    rendered = Console(file=io.StringIO(), width=100, record=True)
    rendered.print(display._render())
    display.close()
    assert "recall/loss" not in rendered.export_text()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_logger_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError, match=rf"pip install {name}, or remove"):
        loggers.check_installed([name])


ROW = {"arm": "mha", "step": 3, "loss": 1.5, "validation": {"recall/loss": 2.0}}


def test_tensorboard_gets_one_scalar_per_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Mock()
    monkeypatch.setattr(loggers, "check_installed", lambda names: None)
    monkeypatch.setitem(
        sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)
    )
    [logger] = loggers.open_loggers(["tensorboard"], tmp_path, "run/mha")
    logger.log(ROW)
    logger.close()
    writer.assert_called_once_with(str(tmp_path / "tensorboard"))
    written = [call.args for call in writer.return_value.add_scalar.call_args_list]
    assert written == [("loss", 1.5, 3), ("validation/recall/loss", 2.0, 3)]
    writer.return_value.close.assert_called_once()


def test_wandb_continues_its_chart_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Mock()
    monkeypatch.setattr(loggers, "check_installed", lambda names: None)
    monkeypatch.setitem(sys.modules, "wandb", package)
    for _ in range(2):
        [logger] = loggers.open_loggers(["wandb"], tmp_path, "run/mha")
        logger.log(ROW)
        logger.close()
    identities = {call.kwargs["id"] for call in package.init.call_args_list}
    assert len(identities) == 1
    expected = {"loss": 1.5, "validation/recall/loss": 2.0}
    package.init.return_value.log.assert_called_with(expected, step=3)
