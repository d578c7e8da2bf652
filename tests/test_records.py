"""Run directories and the files in them."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wuneng.errors import DamagedError, DataError, DiskError, ModelError
from wuneng.records import (
    RunDirectory,
    append_jsonl,
    disk_errors,
    find_model,
    read_json,
    read_jsonl,
    truncate_jsonl_after,
    write_json,
    write_text_atomic,
)
from wuneng.records.checksums import verify

# ---------------------------------------------------------------- files


def test_json_goes_out_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "x.json"
    write_json(path, {"a": [1, 2.5, None], "b": "é", "c": math.nan, "d": (math.inf,), "e": path})
    assert read_json(path) == {
        "a": [1, 2.5, None],
        "b": "é",
        "c": None,
        "d": [None],
        "e": str(path),
    }


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="the disk is full") as caught:
        write_json(path, {"new": 2})
    assert str(path) in str(caught.value)
    assert read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_an_interrupted_write_leaves_nothing_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        write_text_atomic(tmp_path / "x.txt", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_disk_that_refuses_is_named(number: int) -> None:
    with pytest.raises(DiskError, match="/some/where"), disk_errors(Path("/some/where")):
        raise OSError(number, os.strerror(number))


def test_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        (tmp_path / "missing").open()


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_line_that_fits_in_part_is_taken_back(tmp_path: Path) -> None:
    """A limit on the file's size refuses the rest of a line as a full disk does."""
    path = tmp_path / "metrics.jsonl"
    code = f"""
import resource, wuneng_cli
from pathlib import Path
from wuneng.records import append_jsonl
append_jsonl(Path({str(path)!r}), {{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
append_jsonl(Path({str(path)!r}), {{"step": 2, "text": "x" * 50}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"DiskError: cannot write {path}" in done.stderr
    assert path.read_bytes() == b'{"step": 1}\n'


def test_bad_json_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1,\n oops}', encoding="utf-8")
    with pytest.raises(DataError, match="line 2"):
        read_json(path)
    with pytest.raises(DataError, match="cannot read"):
        read_json(tmp_path / "missing.json")


def test_lines_accumulate(tmp_path: Path) -> None:
    path = tmp_path / "arm" / "metrics.jsonl"
    assert read_jsonl(path) == []
    for step in range(3):
        append_jsonl(path, {"step": step, "loss": math.inf if step == 1 else 0.5})
    assert read_jsonl(path) == [
        {"step": 0, "loss": 0.5},
        {"step": 1, "loss": None},
        {"step": 2, "loss": 0.5},
    ]


def test_lines_survive_a_kill_at_any_byte(tmp_path: Path) -> None:
    """Whatever is left of the file, complete lines are read, and the next append starts clean."""
    whole = tmp_path / "whole.jsonl"
    rows = [{"step": 1, "text": "é"}, {"step": 2, "text": "x" * 9000}]
    for row in rows:
        append_jsonl(whole, row)
    data = whole.read_bytes()
    first = data.index(b"\n") + 1
    for cut in [*range(first + 3), first + 4095, first + 4097, len(data) - 1, len(data)]:
        path = tmp_path / "torn.jsonl"
        path.write_bytes(data[:cut])
        complete = data[:cut].count(b"\n")
        assert read_jsonl(path) == rows[:complete]
        append_jsonl(path, {"step": 9})
        assert read_jsonl(path) == [*rows[:complete], {"step": 9}]


def test_a_bad_line_in_the_middle_is_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2"):
        read_jsonl(path)


@given(steps=st.lists(st.integers(0, 9)), last=st.integers(-1, 9), torn=st.booleans())
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_truncation_keeps_rows_up_to_the_step(
    tmp_path: Path, steps: list[int], last: int, torn: bool
) -> None:
    path = tmp_path / "x.jsonl"
    rows: list[dict[str, Any]] = [{"step": step} for step in steps] + [{"note": "no step"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"st' * torn)
    truncate_jsonl_after(path, last)
    assert read_jsonl(path) == [row for row in rows if row.get("step", last) <= last]
    assert path.read_bytes().endswith(b"\n")


def test_truncating_a_missing_file_makes_none(tmp_path: Path) -> None:
    truncate_jsonl_after(tmp_path / "x.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- run directories


def test_layout(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "r")
    assert run.arm("mha").metrics == tmp_path / "r/mha/metrics.jsonl"
    assert run.arm("mha", 3).checkpoints == tmp_path / "r/mha/seed-3/checkpoints"
    assert run.arm("mha").model == tmp_path / "r/mha/model"
    assert (run.recipe.name, run.results.name) == ("recipe.yaml", "results.json")
    assert not run.path.exists(), "naming a run makes no directory"


def test_taken_names_are_numbered(tmp_path: Path) -> None:
    made = [RunDirectory.create("q", tmp_path).path.name for _ in range(3)]
    assert made == ["q", "q-2", "q-3"]


def test_latest_follows(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for name in ("a", "b"):
        RunDirectory.create(name, root).update_latest(root)
        assert (root / "latest").readlink() == Path(name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    RunDirectory(elsewhere).update_latest(root)
    assert (root / "latest").resolve() == elsewhere.resolve()
    assert sorted(p.name for p in root.iterdir()) == ["a", "b", "latest"]


# ---------------------------------------------------------------- finding a model


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    run = RunDirectory.create("q", root)
    run.recipe.write_text("arms:\n  wuneng: {}\n  mha: {}\n  late: {}\n", encoding="utf-8")
    write_json(run.arm("wuneng", 10).model / "config.json", {})
    write_json(run.arm("wuneng", 2).model / "config.json", {})
    write_json(run.arm("mha").model / "config.json", {})
    (run.arm("late").checkpoints / "step-5").mkdir(parents=True)
    run.update_latest(root)
    return root


def test_whatever_names_a_model_finds_it(runs: Path) -> None:
    reference = runs / "q/wuneng/seed-2/model"
    baseline = runs / "q/mha/model"
    assert find_model(None, runs_root=runs).samefile(reference)
    assert find_model(runs / "q", runs_root=runs) == reference
    assert find_model("q", runs_root=runs) == reference
    assert find_model(str(runs / "latest"), runs_root=runs).samefile(reference)
    assert find_model(runs / "q", arm="mha", runs_root=runs) == baseline
    assert find_model(None, arm="mha", runs_root=runs).samefile(baseline)
    assert find_model(runs / "q/mha", runs_root=runs) == baseline
    assert find_model(baseline, runs_root=runs) == baseline
    assert find_model(runs / "q/wuneng/seed-10", runs_root=runs).parent.name == "seed-10"


@pytest.mark.parametrize(
    ("model", "arm", "message"),
    [
        ("nowhere", None, r"model nowhere does not exist \(nor does .*runs/nowhere\)"),
        ("/nowhere", None, r"^model /nowhere does not exist\.$"),
        ("qq", None, "Did you mean 'q'"),
        ("runs/q", "mah", r"has no arm 'mah': wuneng, mha, late\. Did you mean 'mha'"),
        ("runs/q", "late", "arm 'late' of .* has no trained model yet .*resumes it"),
        ("runs/q/late", None, "no model in .*: expected config.json .*resumes it"),
        ("runs/q/mha/model", "mha", "is not a run directory"),
        ("runs/q/recipe.yaml", None, "is a file, expected a directory"),
        ("runs", None, r"no model in .*: expected config\.json"),
    ],
)
def test_what_is_no_model_is_told(
    runs: Path, monkeypatch: pytest.MonkeyPatch, model: str, arm: str | None, message: str
) -> None:
    monkeypatch.chdir(runs.parent)
    with pytest.raises(ModelError, match=message):
        find_model(model, arm, Path("runs"))


def test_a_latest_run_that_is_not_finished_says_so(runs: Path) -> None:
    begun = RunDirectory(runs / "begun")
    begun.path.mkdir()
    begun.recipe.write_text("arms:\n  wuneng: {}\n", encoding="utf-8")
    (begun.arm("wuneng").checkpoints / "step-5").mkdir(parents=True)
    begun.update_latest(runs)
    with pytest.raises(ModelError, match=r"so the latest run was meant$"):
        find_model(None, runs_root=runs)
    write_json(runs / "q" / "results.json", {})
    with pytest.raises(ModelError, match=r"the last that is finished is .*runs/q$"):
        find_model(None, runs_root=runs)


def test_without_any_run(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model was given and there is no .*latest; train one"):
        find_model(None, runs_root=tmp_path / "runs")


@pytest.mark.parametrize("recipe", ["arms: 3", "", "a: [", "arms: null"])
def test_a_run_with_a_broken_recipe(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    with pytest.raises(ModelError, match=r"recipe\.yaml does not name the arms"):
        find_model(tmp_path)


def test_a_directory_above_stopped_runs_is_not_called_stopped(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a" / "wuneng" / "checkpoints" / "step-3").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"or recipe\.yaml \(a run\)$"):
        find_model(tmp_path)
    with pytest.raises(ModelError, match="its training was stopped"):
        find_model(tmp_path / "runs" / "a" / "wuneng")


@pytest.mark.parametrize("text", ["[" * 101 + "]" * 101, '{"a":' * 600 + "1" + "}" * 600])
def test_json_that_is_too_deep_to_walk_through(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json: not valid JSON: nested more than 100 deep"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("[" * 100 + "]" * 100)
    assert read_json(tmp_path / "x.json")


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"name": "a\ud800", "other": "ä"})
    assert read_json(tmp_path / "x.json") == {"name": "a\ud800", "other": "ä"}
    write_json(tmp_path / "y.json", {"other": "ä"})
    assert "ä" in (tmp_path / "y.json").read_text()


def test_checksums_of_a_name_that_no_file_has(tmp_path: Path) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1}
    for name in ("a\0b", "../a", "/a"):
        write_json(tmp_path / "checksums.json", {"schema": 1, "files": {name: entry}})
        with pytest.raises(DamagedError, match="damaged: it holds no checksums any more"):
            verify(tmp_path)
