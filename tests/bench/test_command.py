"""``wuneng bench`` and ``python -m wuneng.bench``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import wuneng.bench.engine
import wuneng.bench.models
import wuneng.bench.pictures
import wuneng.bench.session
import wuneng_cli.bench
from tests.bench.records import PlantedClock
from wuneng.bench.__main__ import main
from wuneng.bench.engine import Missing
from wuneng.bench.record import write_record
from wuneng_cli.main import app

SHORT = ["bench", "--seq-len", "16,32", "--what", "decode", "--against", "mha", "--device", "cpu"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PlantedClock:
    clock = PlantedClock(0)
    monkeypatch.setattr(wuneng.bench.session, "clock_for", lambda device: clock)
    monkeypatch.chdir(tmp_path)
    return clock


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and other tests look at them."""
    monkeypatch.setattr(wuneng.bench.pictures, "draw", lambda record, directory: [])
    monkeypatch.setattr(wuneng_cli.bench, "leave_report", lambda directory: None)


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.usefixtures("pages")
def test_the_answer_first_then_files(planted: PlantedClock, tmp_path: Path) -> None:
    result = run(*SHORT)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("decode: wuneng is level with mha within noise at every length: ")
    assert "GFLOP/s" in result.stdout
    assert "growth with length" not in result.stdout
    assert len(lines) < 20
    assert "decode, 16 tokens, batch 1" in result.stderr
    made = tmp_path / "runs" / "bench" / "small"
    assert {"bench.json", "bench.csv", "decode.png", "roofline.svg", "report.html"} <= {
        path.name for path in made.iterdir()
    }


@pytest.mark.parametrize("out", [[], ["--out", "some/new/place"]])
def test_one_that_is_stopped_early_leaves_nothing(
    out: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wuneng.bench.session, "run_benchmark", stopped)
    assert run(*SHORT, *out).exit_code == 130
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_is_found_before(
    planted: PlantedClock, undrawn: None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    result = run(*SHORT, "--out", "file/below")
    assert result.exit_code == 2
    assert "--out file/below: expected a directory to write to, file is a file" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_table_when_asked(planted: PlantedClock, undrawn: None) -> None:
    result = run(*SHORT, "--verbose", "--quiet")
    assert result.exit_code == 0, result.output
    for expected in ("decode: one more token", "of mha's speed", "growth with length", "GFLOP/s"):
        assert expected in result.stdout


def test_nothing_measured_for_memory_exits_1(
    planted: PlantedClock, undrawn: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wuneng.bench.engine, "available_bytes", lambda device: 1000)
    result = run(*SHORT, "-q")
    assert result.exit_code == 1, result.output
    assert "error: nothing was measured: 4 out of memory. The smallest, decode of" in result.stderr
    assert "at 16 tokens, batch 1: about 0.0 GiB needed" in result.stderr
    assert "--batch" in result.stderr


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (
            Missing("planted is not installed"),
            "error: nothing was measured: 4 missing. wuneng: planted is not inst",
        ),
        (
            ZeroDivisionError("planted"),
            "error: decode next token, mha, 16 tokens, batch 1: failed: ZeroDiv",
        ),
    ],
)
def test_a_case_that_cannot_be_run_is_told_and_exits_1(
    planted: PlantedClock,
    undrawn: None,
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    message: str,
) -> None:
    def broken(row: Any, model: Any, twin: Any) -> Any:
        raise raised

    monkeypatch.setattr(wuneng.bench.models, "decode_gate", broken)
    result = run(*SHORT, "-q")
    assert result.exit_code == 1, result.output
    assert message in result.stderr


def test_json_on_stdout_alone(planted: PlantedClock, undrawn: None, tmp_path: Path) -> None:
    result = run(*SHORT, "--json", "--quiet", "--out", str(tmp_path / "out"))
    assert json.loads(result.stdout)["directory"] == str(tmp_path / "out")
    assert result.stderr == ""


def test_compare_fails_over_a_planted_slowdown(
    planted: PlantedClock, undrawn: None, decode_record: Any, tmp_path: Path
) -> None:
    write_record(tmp_path / "old", decode_record)
    same = ["bench", "--compare", str(tmp_path / "old"), "--fail-over", "10%", "-q"]
    result = run(*same)
    assert result.exit_code == 0, result.output
    assert "No regression beyond noise" in result.stdout
    planted.factors["mha"] = 1.5
    result = run(*same)
    assert result.exit_code == 1
    assert "by more than 10%" in result.stdout.splitlines()[0]
    assert "none" not in result.stdout, "unchanged figures are for --verbose"
    assert "none" in run(*same, "--verbose").stdout


def test_compare_without_a_limit_only_tells(
    planted: PlantedClock, undrawn: None, decode_record: Any, tmp_path: Path
) -> None:
    write_record(tmp_path / "old", decode_record)
    planted.factors["mha"] = 1.5
    result = run("bench", "--compare", str(tmp_path / "old"), "-q", "--json")
    assert result.exit_code == 0, result.output
    comparison = json.loads(result.stdout)["comparison"]
    assert comparison["passed"] is True
    assert {c["arm"] for c in comparison["changes"] if c["verdict"] == "worse"} == {"mha"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seq-len", "8q"], "--seq-len: expected"),
        (["--what", "trian"], "Did you mean 'train'?"),
        (["--fail-over", "10%"], "--fail-over needs --compare"),
        (["--compare", "none.json"], "cannot read none.json"),
        (["--model", "none.yaml"], "none.yaml"),
    ],
)
def test_bad_input_exits_2_with_one_message(
    planted: PlantedClock, arguments: list[str], message: str
) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr


def test_the_module_needs_few_packages(tmp_path: Path, repository: Path) -> None:
    """Operators and decoding where recipes, data sets and the harness are not installed."""
    script = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pydantic", "datasets", "lm_eval", "typer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from wuneng.bench import architectures
architectures.DEFAULT_MODEL |= {"hidden_size": 64, "num_hidden_layers": 1}
from wuneng.bench.__main__ import main
from wuneng.bench.engine import Missing
lengths = ["--seq-len", "16,32", "--seconds", "0.1", "--device", "cpu"]
sys.exit(main(["ops,decode,train", *lengths, "--verbose"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "ops: forward" in done.stdout
    assert "missing" in done.stdout.split("train: one optimiser step")[1]


def test_the_module_alone(
    planted: PlantedClock, undrawn: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["ops", "--seq-len", "16,32", "--heads", "1", "--seconds", "1", "--device", "cpu"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "ops, forward: " in capsys.readouterr().out
    assert (tmp_path / "out" / "bench.json").is_file()
    assert main(["ops", "--seq-len", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: --seq-len")


def test_the_module_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "bench.json"


def test_a_record_that_was_edited_is_not_compared_with(
    planted: PlantedClock, undrawn: None, tmp_path: Path
) -> None:
    """It is named, with the flag that skips the check; one without a checksum is read."""
    assert run(*SHORT, "--out", "old").exit_code == 0
    file = tmp_path / "old" / "bench.json"
    assert run(*SHORT, "--compare", "old", "--out", "new").exit_code == 0
    file.write_text(file.read_text().replace('"samples": ', '"samples": 1'))
    refused = run(*SHORT, "--compare", "old", "--out", "new")
    assert refused.exit_code == 2
    assert "old/bench.json: " in refused.output
    assert "--no-verify" in refused.output
    assert run(*SHORT, "--compare", "old", "--out", "new", "--no-verify").exit_code == 0
    (file.parent / "checksums.bench.json").unlink()
    assert run(*SHORT, "--compare", "old", "--out", "new").exit_code == 0


def test_an_old_record_of_wrong_types_is_told(tmp_path: Path, repository: Path) -> None:
    record = json.loads((repository / "benchmarks/cpu-ops/bench.json").read_text())
    record["request"]["what"] = 5
    (tmp_path / "old.json").write_text(json.dumps(record))
    done = run("bench", "--compare", str(tmp_path / "old.json"))
    assert done.exit_code == 2
    assert "bench.json.request.what: expected array, got int" in done.output.replace("\n", " ")


def test_sentences_fold_where_the_command_is_not_installed_too(
    decode_record: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wuneng.bench.session.run_benchmark", lambda *_, **__: decode_record)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "dumb")  # no colours, whose codes would count
    assert main(["decode", "--seq-len", "16,32", "--device", "cpu"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert any(line.startswith("decode: ") for line in lines)
    assert [line for line in lines if len(line) > 60] == []
