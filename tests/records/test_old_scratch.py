"""Scratch directories of earlier versions go; what somebody else might have made stays."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from wuneng.records.leftovers import KERNEL_BUILD
from wuneng.records.scratch import remove_unused, scratch_directory

#: Today's prefix, a name of then and what was in it.
OLD = {
    "eval": (".wuneng-eval-", "wuneng-eval-x3_k9abc", ["piqa.yaml", "piqa-test.parquet", "hf"]),
    "export": (".wuneng-export-", "wuneng-export-abcd1234", ["inputs.safetensors", "modules"]),
    "kernels": (".wuneng-kernels-", "wuneng-kernels-zzzzzzzz", ["variant0.so", "variant0.a.c.o"]),
    "build": (KERNEL_BUILD, "build-0q_8rst2", ["state_head_64_0a1b.so", ".in-use"]),
    "empty": (".wuneng-eval-", "wuneng-eval-00000000", []),
}


def make(place: Path, name: str, files: list[str]) -> Path:
    path = place / name
    path.mkdir(mode=0o700)
    for file in files:
        (path / file).write_text("x", encoding="utf-8")
    os.utime(path, (0, 0))
    return path


@pytest.mark.parametrize("case", OLD)
def test_what_earlier_versions_left_goes(case: str, tmp_path: Path) -> None:
    prefix, name, files = OLD[case]
    left = make(tmp_path, name, files)
    with scratch_directory(prefix, tmp_path):
        assert not left.exists()


def test_each_goes_with_its_own_kind_alone(tmp_path: Path) -> None:
    left = {case: make(tmp_path, name, files) for case, (_, name, files) in OLD.items()}
    remove_unused(".wuneng-eval-", tmp_path)
    assert [case for case, path in left.items() if not path.exists()] == ["eval", "empty"]
    remove_unused(".wuneng-other-", tmp_path)
    assert left["export"].exists()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("wuneng-eval-baseline", ["thesis.tex"]),  # eight letters that somebody chose
        ("wuneng-eval-baseline", ["piqa.yaml", "notes.md"]),
        ("wuneng-eval-results-1", ["piqa.yaml"]),
        ("wuneng-eval-v1", []),
    ],
)
def test_what_may_be_somebodys_own_stays(name: str, files: list[str], tmp_path: Path) -> None:
    mine = make(tmp_path, name, files)
    remove_unused(".wuneng-eval-", tmp_path)
    assert sorted(os.listdir(mine)) == sorted(files)


def test_a_young_one_stays(tmp_path: Path) -> None:
    _, name, files = OLD["eval"]
    young = make(tmp_path, name, files)
    os.utime(young)
    remove_unused(".wuneng-eval-", tmp_path)
    assert young.exists()


def test_one_that_others_may_read_stays(tmp_path: Path) -> None:
    _, name, files = OLD["eval"]
    open_to_all = make(tmp_path, name, files)
    open_to_all.chmod(0o755)
    remove_unused(".wuneng-eval-", tmp_path)
    assert open_to_all.exists()


def test_one_that_an_earlier_version_still_uses_stays(tmp_path: Path) -> None:
    _, name, files = OLD["eval"]
    used = make(tmp_path, name, [*files, ".in-use"])
    with (used / ".in-use").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_unused(".wuneng-eval-", tmp_path)
        assert used.exists()
    remove_unused(".wuneng-eval-", tmp_path)
    assert not used.exists()


def test_a_link_with_such_a_name_is_not_followed(tmp_path: Path) -> None:
    target = make(tmp_path, "mine", ["piqa.yaml"])
    (tmp_path / OLD["eval"][1]).symlink_to(target)
    remove_unused(".wuneng-eval-", tmp_path)
    assert (target / "piqa.yaml").exists()
