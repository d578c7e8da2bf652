"""Every command that the README and the help texts show is one that the program takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from wuneng.evaluate.local_formats import formats_table
from wuneng.recipe import load_recipe
from wuneng.train import Workers, run
from wuneng_cli.main import app

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
WHOLE = re.MULTILINE | re.DOTALL
BLOCK = re.compile(r"^```\w*\n(.*?)^```", WHOLE)
# Up to the remark, which two spaces or more set off.
COMMAND = re.compile(r"(?:^ *|&& *|\| *)(?:\.venv/bin/)?(wuneng(?: \S+)+)", re.MULTILINE)
CONTINUED = re.compile(r" *\\\n +")
COPY = re.compile(r"^cp (\S+) (\S+)$", re.MULTILINE)


def commands_in(text: str) -> list[str]:
    whole = CONTINUED.sub(" ", text)
    return [found.strip() for found in COMMAND.findall(whole)]


SHOWN = sorted(
    {
        *(line for block in BLOCK.findall(README) for line in commands_in(block)),
        *(line for command in COMMANDS.values() for line in commands_in(command.epilog or "")),
        *commands_in(get_command(app).epilog or ""),
    }
)
COPIES = {copy: original for original, copy in COPY.findall(README)}


def test_commands_are_found() -> None:
    assert "wuneng train recipes/quickstart.yaml" in SHOWN
    assert {line.split()[1] for line in SHOWN} == set(COMMANDS), "each command is shown"


@pytest.mark.parametrize("line", SHOWN)
def test_a_shown_command_is_one_that_the_program_takes(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    assert name in COMMANDS
    command = COMMANDS[name]
    while arguments and arguments[0] in (inner := getattr(command, "commands", {})):
        name, command = arguments[0], inner[arguments.pop(0)]
    known = {option for field in command.params for option in field.opts + field.secondary_opts}
    assert {word.split("=")[0] for word in arguments if word.startswith("-") and word != "-"} <= (
        known | {"--help"}
    )
    if any(re.fullmatch(r"\[?[A-Z]{3,}\]?", word) for word in arguments):
        return  # a synopsis: words that stand for something, and required options left out
    given = command.make_context(name, arguments).params  # a usage error fails the test
    if name == "train":
        _check_recipe(Path(given["recipe"]), given["changes"] or [])


def _check_recipe(path: Path, changes: list[str]) -> None:
    """A recipe that is in the repository, or copied from one, loads with the changes shown."""
    original = REPOSITORY / COPIES.get(str(path), path)
    if path.parts[0] == "recipes" or str(path) in COPIES:
        load_recipe(original, changes)


def places() -> Iterator[str]:
    """With enough different pairs of letters for a small tokenizer."""
    ends = ("den", "chen", "try", "room", "house")
    for beginning, end in product(("gar", "kit", "pan", "bed", "store"), ends):
        yield f"{beginning}{end} by the {end}{beginning}"


def recipes_shown() -> Iterator[Any]:
    """Whole recipes in the README: blocks that begin with a file's name."""
    for name, text in re.findall(r"^```yaml\n# (\w+\.yaml)\n(.*?)^```", README, WHOLE):
        yield pytest.param(text, id=name)


@pytest.mark.parametrize("text", list(recipes_shown()))
def test_a_shown_recipe_trains_on_rows_like_the_one_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    [row] = re.findall(r"^```\n(\{[^\n]*\})\n```", README, WHOLE)
    for wanted in re.findall(r": (\S+\.jsonl)", text):
        file = tmp_path / wanted
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            "\n".join(row.replace("hall", f"{file.stem} {place}") for place in places())
        )
    monkeypatch.chdir(tmp_path)
    short = ["training.steps=2", "training.batch_size=2", "training.sequence_length=64"]
    results = run(load_recipe(path, short), workers=Workers(1))
    assert set(results.record["arms"]) == set(load_recipe(path).arms)


def test_files_that_the_readme_names_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    named = re.findall(r"`((?:tests|recipes|wuneng)/[\w/.-]+)`", README)
    missing = [path for path in [*links, *named] if not (REPOSITORY / path).exists()]
    assert not missing


def test_the_table_of_local_formats_is_the_programs_own() -> None:
    shown = re.search(r"<!-- formats: begin -->\n(.*?)<!-- formats: end -->", README, re.DOTALL)
    assert shown, "the markers around the table are gone"
    assert shown[1].strip() == formats_table().strip()
