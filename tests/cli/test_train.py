"""wuneng train: errors, exit codes and one run; what is trained is tested elsewhere."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import outcome
from wuneng.errors import DiskError, InputError

run = partial(outcome, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "error: recipe no.yaml does not exist."),
        (["tniy.yaml"], "Did you mean 'tiny.yaml'?"),
        (["tiny.yaml", "--set", "training.stesp=3"], "Did you mean 'steps'?"),
        (
            ["tiny.yaml", "--set", "model.num_attention_heads=3"],
            "expected a divisor of hidden_size",
        ),
        (["tiny.yaml", "--set", "training.sequence_length=4"], "task 'recall' needs"),
        (["tiny.yaml", "--set", "model.vocab_size=3", "--dry-run"], "model.vocab_size is 3"),
        (["tiny.yaml", "--set", "training.steps=8q"], "training.steps: expected a whole number"),
        (["tiny.yaml", "--set", "training.batch_size=0"], "expected 1 or more, got 0"),
        (["tiny.yaml", "--resume", "nowhere"], "--resume nowhere"),
        (["tiny.yaml", "--out", "tiny.yaml"], "--out tiny.yaml"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert message in err
    assert "Traceback" not in err
    assert out == ""


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "absent.txt": (None, "no file or directory 'absent.txt'"),
    "empty.txt": (b"", "data.train: empty.txt is empty"),
    "short.txt": (b"ab", "fewer than one sequence of training.sequence_length"),
    "latin.txt": (b"one\ncaf\xe9\n" * 99, "latin.txt, line 2: expected UTF-8 text, got byte 0xe9"),
    "rows.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "rows.jsonl, line 2: no field 'text'"),
    "cut.jsonl.gz": (b"\x1f\x8b", "cut.jsonl.gz: damaged or cut gzip file"),
    "bad.parquet": (b"PAR1", "bad.parquet: not a readable parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_data_file_is_one_message_and_leaves_no_run(
    tiny: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("WUNENG_CACHE", "cache")
    content, message = BAD_FILES[name]
    if content is not None:
        Path(name).write_bytes(content)
    Path("runs/good").mkdir(parents=True)
    Path("runs/latest").symlink_to("good")
    code, out, err = run(tiny, "--set", f"data={{kind: text, train: {name}}}", "--quiet")
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    # The corrected command takes the name, and what was the latest run before still is.
    assert sorted(path.name for path in Path("runs").iterdir()) == ["good", "latest"]
    assert Path("runs/latest").resolve().name == "good"


def test_a_full_disk_is_one_message_and_exit_code_1(tiny: str, small_disk: Path) -> None:
    """The checkpoints before it stand, and with more space the same command continues."""
    out = small_disk / "run"
    with (small_disk / "ballast").open("wb") as ballast:
        ballast.write(b"\0" * (7 << 19))  # 3.5 of the 4 MB
    arguments = (tiny, "--out", str(out), "--set", "training.checkpoint_every=1", "--quiet")
    code, _, err = run(*arguments)
    assert code == 1, err
    assert err.startswith("error: cannot write ")
    assert err.count("\n") == 1
    assert "the disk is full" in err
    saved = sorted(path.name for path in out.glob("wuneng/checkpoints/step-*"))
    assert saved
    (small_disk / "ballast").unlink()
    code, printed, err = run(*arguments)
    assert (code, err) == (0, "")
    assert f"Everything is in {out}" in printed


def test_every_problem_has_a_line(tiny: str) -> None:
    code, _, err = run(tiny, "--set", "modle.x=1", "--set", "training.stesp=3")
    assert code == 2
    assert [line[:7] for line in err.splitlines()] == ["error: ", "       "]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (DiskError("cannot write x: full"), 1, "error: cannot write x: full\n"),
        (InputError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 1, "error: the disk is full: "),
    ],
)
def test_exit_codes(
    tiny: str, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, message: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("wuneng.train.run", failing)
    found, out, err = run(tiny)
    assert (found, out) == (code, "")
    assert err.startswith(message)


def test_a_bug_keeps_its_traceback(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wuneng.train.run", failing)
    with pytest.raises(ZeroDivisionError):
        run(tiny)


@pytest.mark.usefixtures("pages")
def test_a_run_from_end_to_end(tiny: str) -> None:
    code, out, err = run(tiny, "--json", "--device", "cpu")
    assert code == 0, err
    result = json.loads(out)
    assert list(result["arms"]) == ["wuneng", "mha"]
    assert "recall/accuracy@32" in result["arms"]["wuneng"]["quality"]
    assert Path(result["directory"]).resolve() == Path("runs/latest").resolve()
    code, out, err = run(tiny, "--quiet", "--out", "again")
    assert (code, err) == (0, "")
    assert "parameters" in out
    assert "recall/accuracy@32" in out
    assert "step 2/2" not in out, "quiet shows no progress"
    assert "Everything is in again; report.html shows it." in out
    assert "recall/accuracy@32" in Path("again/report.html").read_text(encoding="utf-8")
    assert Path("again/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Next: wuneng eval again\n" in out
    assert "wuneng eval again --state zero" in out
    assert "generate" not in out, "a model of synthetic tasks cannot be prompted"
