"""What others have named is shown on the terminal, not obeyed."""

from __future__ import annotations

import ast
import io
import json
import logging
import sys
from pathlib import Path

import pytest
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from wuneng.foreign import print_line, shown, shown_line
from wuneng.foreign.terminal import PlainConsole
from wuneng.train.display import PanelDisplay, PlainDisplay, Progress
from wuneng_cli.main import _PlainFormatter, app
from wuneng_cli.render import print_error, print_json, print_renderable, print_text

#: Retitles the window, moves up and erases a line, in 7 and in 8 bits; turns the direction.
NASTY = "a\x1b]0;owned\x07\x1b[1A\x1b[2K\x9b31m\u202egpj\u2028b\r\x00\x7f"
MARKUP = "mha[/] [red]x[/red] :smile: [link=http://x]y[/link]"


def harmless(text: str) -> bool:
    """No character that a terminal would obey or hide, line breaks aside."""
    return not (set(text) & set("\x1b\x07\x9b\x00\x7f\r\u202e\u2028"))


def test_what_is_obeyed_is_shown() -> None:
    assert shown(NASTY) == (r"a\x1b]0;owned\x07\x1b[1A\x1b[2K\x9b31m\u202egpj\u2028b\r\x00\x7f")
    assert shown("lone \ud800, BOM \ufeff") == r"lone \ud800, BOM \ufeff"
    assert shown("two\nlines\tand a tab") == "two\nlines\tand a tab"
    assert shown_line("two\nlines\t") == r"two\nlines\t"


@pytest.mark.parametrize(
    "text", ["café 東京", "Δ logit ± 0.1 %", "👩‍👩‍👧 ✓", "می‌خواهم", "a‍b", "C:\\x1b", ""]
)
def test_ordinary_text_stays(text: str) -> None:
    assert shown(text) == text


def everything(value: str) -> Table:
    """A table with ``value`` wherever a table can hold one."""
    table = Table(title=value, caption=value)
    table.add_column(value, footer=value)
    table.add_column("Text")
    table.add_row(value, Text(value))
    return table


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("value", [NASTY, MARKUP])
def test_tables_show(value: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    PlainConsole(file=stream, width=200).print(everything(value))
    PlainConsole(file=stream, width=200).print(value)
    plain = stream.getvalue()
    assert "\x1b]" not in plain
    assert "\x1b[1A" not in plain
    assert harmless(plain.replace("\x1b[", ""))  # rich's own colours
    assert shown(value) in plain
    lines = [line for line in plain.splitlines() if line.startswith("│")]
    assert len({len(line) for line in lines if "\x1b" not in line}) <= 1  # columns hold


@pytest.mark.parametrize("value", [NASTY, MARKUP])
def test_every_way_of_printing(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_error(f"{value}: no such file\nsecond")
    print_renderable(everything(value))
    print_renderable(everything(value), stderr=True)
    print_text(value)
    print_line(value)
    print_line(value, stderr=True)
    progress = Progress(value, 0, 1, 2, 1.0, 1e-3, 1.0, 1.0, 1.0, True, {value: 1.0})
    for display in (PlainDisplay(sys.stdout), PanelDisplay(PlainConsole(file=sys.stdout))):
        display.stepped(progress)
        display.note(value)
        display.warn(value)
        display.close()
    printed = capsys.readouterr()
    for text in (printed.out, printed.err):
        assert harmless(text)
        assert shown(value).split()[0] in text
    assert printed.err.count("error: ") == 1


def test_the_panel_of_an_arm_called_as_markup() -> None:
    display = PanelDisplay(PlainConsole(file=io.StringIO(), width=120))
    display._progress = Progress(MARKUP, 0, 1, 2, 1.0, 1e-3, 1.0, 1.0, 1.0, True, {MARKUP: 1.0})
    display._validation = {MARKUP: 1.0}
    stream = io.StringIO()
    panel = display._render()
    assert isinstance(panel, Panel)
    PlainConsole(file=stream, width=120).print(panel)
    assert stream.getvalue().count("mha[/] [red]x[/red] :smile:") == 2


def test_json_keeps_the_value(capsys: pytest.CaptureFixture[str]) -> None:
    value = {NASTY: ["東京", NASTY, "\ud800"]}
    print_json(value)
    text = capsys.readouterr().out
    assert harmless(text)
    assert "東京" in text
    assert json.loads(text) == value


def test_log_lines() -> None:
    record = logging.LogRecord("x", logging.WARNING, "", 0, "entry %s", (NASTY,), None)
    assert _PlainFormatter().format(record) == f"entry {shown(NASTY)}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", NASTY],
        ["train", f"--{NASTY}"],
        [NASTY],
        ["eval", NASTY, "--tasks", "arc"],
        ["eval", "--tasks", "arc", "--state", NASTY],
        ["generate", NASTY, "--prompt", "x"],
        ["generate", "--prompt", "x", "--max-tokens", NASTY],
        ["convert", NASTY, "there"],
        ["bench", "--model", NASTY],
    ],
)
def test_commands_quote_harmlessly(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    clean = [argument.replace("\x00", "") for argument in arguments]
    done = CliRunner().invoke(app, clean)
    assert done.exit_code == 2
    assert harmless(done.output)
    assert "\\x1b" in done.output


def test_a_recipes_keys_and_values(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        'name: "x\\e]0;owned\\a"\n"ke\\e[2Ky": 1\ndata: {kind: text, train: "\\e[1A"}\n'
        'arms: ["a[/]\\e[2K"]\n',
        encoding="utf-8",
    )
    done = CliRunner().invoke(app, ["train", str(recipe)])
    assert done.exit_code == 2
    assert harmless(done.output)
    assert "\\x1b" in done.output


def test_nothing_prints_past_these() -> None:
    """``print`` and rich's own Console are called in the two files that make text harmless."""
    root = Path(__file__).resolve().parents[2]
    allowed = {"wuneng/foreign/lines.py", "wuneng_cli/render.py"}
    found = set()
    for package in ("wuneng", "wuneng_cli"):
        for path in (root / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                name = node.func if isinstance(node, ast.Call) else None
                if isinstance(name, ast.Name) and name.id in ("print", "Console"):
                    found.add(path.relative_to(root).as_posix())
    assert found == allowed
