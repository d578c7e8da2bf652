"""What a person reads is broken between words to the terminal; what a program reads is one line."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path

import pytest

from tests.cli.commands import outcome
from wuneng.foreign import print_line
from wuneng.train.display import QuietDisplay
from wuneng_cli.main import _PlainFormatter, app
from wuneng_cli.render import print_error, print_fact, print_text

LONG = "training.learning_rate: expected a number above 0, got 'fast'. " * 4
PLACE = "/a/directory/" + "of/a/very/long/name/" * 6


def sixty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """stderr is a terminal of that width, whatever the tests are started from."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")


def test_errors_fold_between_words(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sixty_columns(monkeypatch)
    print_error(f"{LONG}\nsecond: {LONG}")
    lines = capfd.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("error: training")
    assert all(line.startswith("       ") for line in lines[1:])
    told = " ".join(" ".join(lines).split())
    assert told == " ".join(f"error: {LONG} second: {LONG}".split())


def test_a_path_stays_whole(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sixty_columns(monkeypatch)
    print_error(f"no such directory: {PLACE} is not there")
    assert any(PLACE in line for line in capfd.readouterr().err.splitlines())


def test_all_that_is_told_in_passing_folds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes, warnings and log lines did not; each line by itself, indented as it is."""
    sixty_columns(monkeypatch)
    print_line(f"92 cases: {LONG}\n  {LONG}", stderr=True)
    QuietDisplay(sys.stderr).warn(LONG)
    record = logging.LogRecord("wuneng", logging.WARNING, "", 0, f"waiting: {LONG}", None, None)
    print(_PlainFormatter().format(record), file=sys.stderr)
    lines = capfd.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 60
    firsts = ("92 cases:", "  training.", "warning: ", "waiting: ")
    starts = [next(n for n, line in enumerate(lines) if line.startswith(one)) for one in firsts]
    assert starts == sorted(starts)
    assert all(line.startswith("  ") for line in lines[starts[1] : starts[2]])
    assert all(line.startswith(" " * 9) for line in lines[starts[2] + 1 : starts[3]])
    assert not lines[1].startswith(" ")


def test_results_on_stdout_are_not_folded(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe, a table in CSV, a generated text: other programs, or the eye, take them whole."""
    sixty_columns(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_line(LONG)
    assert capfd.readouterr().out == f"{LONG}\n"


def test_labelled_results_fold_under_what_is_told(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``convert`` says of a missing tokenizer was one line of 232 columns."""
    sixty_columns(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_fact(f"  tokenizer   none: {LONG}")
    first, *more = capfd.readouterr().out.splitlines()
    assert first.startswith("  tokenizer   none: training")
    assert more
    assert all(line.startswith(" " * 14) and line[14] != " " for line in more)
    assert max(map(len, [first, *more])) <= 60


def test_a_conversion_is_told_in_the_width_of_the_terminal(
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    shared_data: Path,
    tmp_path: Path,
) -> None:
    sixty_columns(monkeypatch)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.chdir(tmp_path)
    shutil.copy(shared_data / "models" / "rwkv7_tiny_834k" / "rwkv7-tiny-834k.pth", "small.pth")
    with pytest.raises(SystemExit) as ended:
        app(["convert", "small.pth", "converted"])
    assert not ended.value.code
    said = capfd.readouterr()
    assert max(map(len, (said.out + said.err).splitlines())) <= 60
    assert "bytes)" in said.out


def test_without_a_command_the_help_stands_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it was broken into one paragraph."""
    for width in ("60", "80", "120"):
        monkeypatch.setenv("COLUMNS", width)
        asked = outcome("--help")[1]
        monkeypatch.setattr(
            "wuneng.foreign.lines._terminal_width", lambda stream, width=width: int(width)
        )
        code, out, err = outcome()
        monkeypatch.undo()
        assert code == 2
        assert (out + err).strip() == asked.strip()
        assert "\n  train " in asked


def test_piped_errors_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    print_error(LONG)
    assert capfd.readouterr().err == f"error: {LONG}\n"


def test_prose_folds_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_text(LONG.strip())
    assert capsys.readouterr().out.count("\n") == 1
    for variable in ("TTY_COMPATIBLE", "FORCE_COLOR", "NO_COLOR"):  # rich 13 reads FORCE_COLOR
        monkeypatch.setenv(variable, "1")
    monkeypatch.setenv("COLUMNS", "60")
    print_text(LONG.strip())
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(line.strip() for line in lines) == LONG.strip()


@pytest.mark.parametrize(
    ("arguments", "option", "least", "came"),
    [
        (("eval", "--limit", "0"), "--limit", "1 or more", "'0'"),
        (("eval", "--num-fewshot", "-1"), "--num-fewshot", "0 or more", "'-1'"),
        (("generate", "--prompt", "x", "--max-tokens", "0"), "--max-tokens", "1 or more", "0"),
        (("inspect", "--seq-len", "0"), "--seq-len", "2 or more", "0"),
        (("bench", "--seconds", "0"), "--seconds", "0.1 or more", "'0'"),
        (("bench", "--heads", "0"), "--heads", "1 or more", "0"),
        (("generate", "--prompt", "x", "--top-p", "7"), "--top-p", "at most 1.0", "'7'"),
        (("train", "x.yaml", "--jobs", "0"), "--jobs", "1 or more", "'0'"),
    ],
)
def test_a_number_out_of_range_is_told_in_the_same_words(
    arguments: tuple[str, ...], option: str, least: str, came: str
) -> None:
    """``inspect --seq-len 0`` of a text run ended in a ZeroDivisionError."""
    code, _, error = outcome(*arguments)
    assert code == 2
    assert option in error
    assert f"expected {least}, got {came}" in error
