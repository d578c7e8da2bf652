"""`wuneng report`: which directories it takes, where it writes, and what it says."""

from __future__ import annotations

import importlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.report.made_up import write_run
from wuneng_cli.main import app
from wuneng_cli.report import leave_report


def wuneng(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "first", seeds=(1,))
    (tmp_path / "runs" / "latest").symlink_to("first")
    return tmp_path / "runs"


def test_the_latest_run_and_one_by_name(runs: Path) -> None:
    result = wuneng("--format", "md")
    assert result.exit_code == 0, result.output
    assert "wuneng has 1" in result.stdout
    assert "no verdict can be given" in result.stdout
    assert (runs / "first" / "report.md").exists()
    assert (runs / "first" / "curves.svg").exists()
    result = wuneng("first", "--format", "md", "--json")
    assert json.loads(result.stdout)["parts"][0]["directory"] == "runs/first"


def test_of_several_runs_each_sentence_says_which(runs: Path) -> None:
    """It was ``wuneng 6.9 against mha 7.1 in ...``: a sentence without a verb, of nobody knew which
    run."""
    write_run(runs / "second", seeds=(1,), name="second")
    told = wuneng("first", "second", "--out", "both").stdout.splitlines()
    assert told[0].startswith("made-up: wuneng has ")
    assert told[1].startswith("second: wuneng has ")
    assert "; wuneng needs " in told[1]
    assert " for mha's loss" in told[1]


def test_without_any_run_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = wuneng()
    assert result.exit_code == 2
    assert "no run was given and there is no runs/latest" in result.stderr


def test_curves_that_cannot_be_drawn_are_one_message(runs: Path) -> None:
    file = runs / "first" / "mha" / "metrics.jsonl"
    with file.open("a") as stream:
        stream.write('{"seed": 1, "tokens": NaN, "validation": {"text/bits_per_byte": 1}}\n')
    result = wuneng("first", "--format", "md")
    assert result.exit_code == 2
    assert "runs/first: " in result.stderr
    assert "Traceback" not in result.stderr


def test_several_go_where_they_are_told(runs: Path) -> None:
    write_run(runs / "second", name="second", seeds=(1,))
    result = wuneng("runs/first", "second", "--out", "both", "--format", "md", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    text = Path("both/report.md").read_text(encoding="utf-8")
    assert "# made-up, second" in text
    assert not (runs / "second" / "curves.svg").exists(), "with --out the runs stay as they are"
    assert "## second" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/frist"], "does not exist (nor does runs/runs/frist). Did you mean 'first'?"),
        (["empty"], "empty holds no record: expected results.json or metrics.jsonl (a run)"),
        (["runs/first/recipe.yaml"], "is a file, expected the directory of a run"),
        (["first", "--format", "pdf"], "expected html or md, got 'pdf'"),
        (["first", "--out", "runs/first/recipe.yaml"], "--out"),
    ],
)
def test_bad_input_is_one_message(runs: Path, arguments: list[str], message: str) -> None:
    Path("empty").mkdir()
    result = wuneng(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr


def test_records_that_were_edited_are_refused(runs: Path) -> None:
    from wuneng.records import read_json, write_sealed_json

    file = runs / "first" / "results.json"
    write_sealed_json(file, read_json(file))
    file.write_text(file.read_text().replace("40000", "50000"))
    result = wuneng("first", "--format", "md")
    assert result.exit_code == 2
    assert "results.json: " in result.stderr
    assert wuneng("first", "--format", "md", "--no-verify").exit_code == 0


def test_curves_that_were_edited_are_refused(runs: Path) -> None:
    """They passed, and the tokens that an arm saves are counted in them."""
    from wuneng.records.checksums import seal

    arm = runs / "first" / "wuneng"
    seal(arm, ["metrics.jsonl"])
    assert wuneng("first", "--format", "md").exit_code == 0
    file = arm / "metrics.jsonl"
    file.write_text(file.read_text().replace('"tokens": ', '"tokens": 1', 1))
    result = wuneng("first", "--format", "md")
    assert result.exit_code == 2
    assert "first/wuneng/metrics.jsonl: " in result.stderr
    assert "checksums.json to accept what is there" in " ".join(result.stderr.split())
    assert wuneng("first", "--format", "md", "--no-verify").exit_code == 0


@pytest.mark.parametrize("name", ["eval.json", "eval-state-zero.json", "bench.json"])
def test_scores_and_times_that_were_edited_are_refused(name: str, tmp_path: Path) -> None:
    from wuneng.errors import DamagedError
    from wuneng.records import write_self_sealed
    from wuneng.report.records import read_records

    file = tmp_path / name
    write_self_sealed(file, {"tasks": {}, "rows": []})
    read_records(tmp_path)
    file.write_text(file.read_text().replace("[]", "[ ]"))
    with pytest.raises(DamagedError, match=rf"{name}: .*--no-verify"):
        read_records(tmp_path)
    read_records(tmp_path, check=False)
    (tmp_path / f"checksums.{name}").unlink()  # as earlier versions left it
    read_records(tmp_path)


@pytest.mark.usefixtures("pages")
def test_a_report_that_cannot_be_written_spoils_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "first" / "report-data").write_text("in the way")
    assert leave_report(runs / "first") is None
    assert "no report was written: " in capsys.readouterr().err


def test_no_page_where_none_is_wanted(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WUNENG_REPORT", "0")
    assert leave_report(runs / "first") is None
    assert not (runs / "first" / "report.html").exists()
    monkeypatch.setenv("WUNENG_REPORT", "")  # an empty variable counts as unset
    assert leave_report(runs / "first") == runs / "first" / "report.html"


def test_nothing_is_claimed_for_a_page_that_nobody_wants(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that is killed there would leave its claim, and no other would come to clear it."""
    train_command: Any = importlib.import_module("wuneng_cli.train")
    asked: list[Path] = []

    def watched(run: Path) -> Any:
        asked.append(run)
        return nullcontext()

    monkeypatch.setattr(train_command, "alone_in", watched)
    for wanted in ("0", "1"):
        monkeypatch.setenv("WUNENG_REPORT", wanted)
        page = train_command._report(runs / "first")
        assert (page is not None) == bool(asked) == (wanted == "1")
