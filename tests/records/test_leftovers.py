"""What a killed process leaves half-written never counts, and goes; what is written stays."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wuneng.errors import InputError
from wuneng.records import (
    RunDirectory,
    atomic,
    leftovers,
    prove_writable,
    read_json,
    sharing,
    usable_directory,
    write_json,
)
from wuneng.records.atomic import directory_written_atomically, remove_leftovers
from wuneng.records.checksums import seal_directory
from wuneng.records.leftovers import being_written, is_leftover_name, lock, remove_if_abandoned
from wuneng.records.lock import is_locked, locked


@pytest.mark.parametrize("leftover", [".x.json.4711.partial", ".x.json.0123456789abcdef.partial"])
def test_the_next_write_removes_what_a_killed_one_left(tmp_path: Path, leftover: str) -> None:
    (tmp_path / leftover).write_text("{", encoding="utf-8")
    (tmp_path / ".y.json.4711.partial").write_text("another file's", encoding="utf-8")
    write_json(tmp_path / "x.json", {"a": 1})
    assert sorted(os.listdir(tmp_path)) == [".y.json.4711.partial", "x.json"]
    assert remove_leftovers(tmp_path) == [".y.json.4711.partial"]


def test_what_another_process_writes_stays(tmp_path: Path) -> None:
    held = tmp_path / ".x.json.4711.partial"
    with held.open("w") as file:
        assert lock(file.fileno())
        write_json(tmp_path / "x.json", {"a": 1})
        assert held.exists()
    write_json(tmp_path / "x.json", {"a": 2})
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_planted_link_is_neither_followed_nor_kept(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious", encoding="utf-8")
    place = tmp_path / "place"
    place.mkdir()
    (place / "x.json").symlink_to(target)
    (place / ".x.json.1.partial").symlink_to(target)
    write_json(place / "x.json", {"a": 1})
    assert target.read_text(encoding="utf-8") == "precious"
    assert read_json(place / "x.json") == {"a": 1}
    assert not (place / "x.json").is_symlink()
    assert os.listdir(place) == ["x.json"]


@pytest.mark.parametrize("name", [".partial-model", ".partial-replaced-model"])
def test_planted_links_for_directories_are_not_followed(tmp_path: Path, name: str) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "kept").write_text("precious", encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / name).symlink_to(target)
    with directory_written_atomically(tmp_path / "model", 0) as temporary:
        (temporary / "a").write_text("new", encoding="utf-8")
    assert os.listdir(target) == ["kept"]
    assert sorted(os.listdir(tmp_path)) == ["model", "target"]
    assert sorted(os.listdir(tmp_path / "model")) == ["a", "checksums.json"]


def test_a_link_in_place_of_a_directory_is_replaced(tmp_path: Path) -> None:
    for target in (tmp_path / "target", tmp_path / "missing"):
        (tmp_path / "model").symlink_to(target)
        with directory_written_atomically(tmp_path / "model", 0) as temporary:
            (temporary / "a").write_text("new", encoding="utf-8")
        assert not (tmp_path / "model").is_symlink()
        assert os.listdir(tmp_path) == ["model"]
        for file in (tmp_path / "model").iterdir():
            file.unlink()
        (tmp_path / "model").rmdir()


def test_two_processes_do_not_write_one_directory(tmp_path: Path) -> None:
    (tmp_path / ".partial-model").mkdir()
    (tmp_path / ".partial-model" / "half").write_text("half", encoding="utf-8")
    with (
        being_written(tmp_path / ".partial-model"),
        pytest.raises(InputError, match=r"another process is writing .*model"),
        directory_written_atomically(tmp_path / "model", 0),
    ):
        pass
    assert (tmp_path / ".partial-model" / "half").exists()
    with directory_written_atomically(tmp_path / "model", 0):
        pass
    assert os.listdir(tmp_path) == ["model"]


def test_who_comes_second_leaves_the_firsts_directory_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process makes its directory after this one has looked."""
    theirs = tmp_path / ".partial-model"
    check = atomic.check_free_space

    def another_is_faster(path: Path, bytes_needed: int) -> None:
        check(path, bytes_needed)
        theirs.mkdir()
        (theirs / "half").write_text("half", encoding="utf-8")

    monkeypatch.setattr(atomic, "check_free_space", another_is_faster)
    with (
        pytest.raises(InputError, match=r"another process is writing .*model"),
        directory_written_atomically(tmp_path / "model", 0),
    ):
        pass
    assert (theirs / "half").read_text(encoding="utf-8") == "half"
    with being_written(theirs):
        assert not remove_if_abandoned(theirs)
    assert remove_if_abandoned(theirs)


def test_what_is_taken_before_it_is_locked_is_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between mkdir and lock another process clears it away and makes its own."""
    theirs = tmp_path / ".partial-model"
    opened = leftovers._opened

    def after_another(path: Path) -> int | None:
        monkeypatch.setattr(leftovers, "_opened", opened)
        path.rename(tmp_path / "gone")
        descriptor = opened(tmp_path / "gone")
        path.mkdir()
        (path / "half").touch()
        return descriptor

    monkeypatch.setattr(leftovers, "_opened", after_another)
    with (
        pytest.raises(InputError, match="another process is writing"),
        directory_written_atomically(tmp_path / "model", 0),
    ):
        pass
    assert (theirs / "half").exists()


def test_a_run_killed_at_its_start_is_begun_again_in_its_place(tmp_path: Path) -> None:
    run = RunDirectory.create("a", tmp_path)
    (run.path / ".lock").write_text("4711", encoding="utf-8")
    (run.path / ".recipe.yaml.4711.partial").write_text("arms:", encoding="utf-8")
    assert RunDirectory.create("a", tmp_path, reuse=True).path == run.path
    with locked(run.path):  # somebody is at it
        assert RunDirectory.create("a", tmp_path, reuse=True).path.name == "a-2"
    (run.path / "thesis.tex").write_text("mine", encoding="utf-8")
    assert RunDirectory.create("a", tmp_path, reuse=True).path.name == "a-2"


def test_who_asks_for_the_lock_keeps_nobody_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the very moment at which another process asks, and two ask at once."""
    with locked(tmp_path):
        assert is_locked(tmp_path)
    with (tmp_path / ".lock").open("rb") as asking:
        assert lock(asking.fileno(), shared=True)
        assert not is_locked(tmp_path)
        monkeypatch.setattr("time.sleep", lambda _: asking.close())
        with locked(tmp_path):
            assert asking.closed


@pytest.mark.parametrize("check", [True, False])
def test_copies_are_read_only_where_that_is_asked(
    check: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"x" * 9)
        seal_directory(tmp_path / name)
    read: list[Path] = []
    monkeypatch.setattr(sharing, "fault", lambda file, _: read.append(file))
    assert sharing.share_files(tmp_path / "a", [tmp_path / "b"], check=check) == 9
    assert (tmp_path / "a" / "weights").samefile(tmp_path / "b" / "weights")
    assert bool(read) is check


def test_a_file_is_shared_with_the_first_that_has_it(tmp_path: Path) -> None:
    """Whatever the order: a second copy does not take it away from the first again."""
    for name in ("first", "second", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"the same")
        seal_directory(tmp_path / name)
    others = [tmp_path / "first", tmp_path / "second"]
    for _ in range(2):
        sharing.share_files(tmp_path / "own", others)
        assert (tmp_path / "own" / "weights").samefile(tmp_path / "first" / "weights")
    sharing.share_files(tmp_path / "second", [tmp_path / "first", tmp_path / "own"])
    assert (tmp_path / "first" / "weights").stat().st_nlink == 3


def test_what_is_only_proved_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for place in ("mine", "mine/deep/er", "new/one"):
        prove_writable(tmp_path / place, "--out")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"]


def test_a_probe_that_a_kill_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".probe.0123456789abcdef.partial").touch()
    assert usable_directory(tmp_path, "--out") == tmp_path
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        (".recipe.yaml.4711.partial", True),
        (".partial-model", True),
        (".partial-replaced-model", True),
        ("recipe.yaml.4711.partial", False),
        (".notes.partial", False),
        (".lock", False),
        ("recipe.yaml", False),
    ],
)
def test_names(name: str, ours: bool) -> None:
    assert is_leftover_name(name) == ours


def test_a_place_is_proved_usable_though_another_process_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the making of the file that proves it and its removal."""
    closed = os.close

    def close(descriptor: int) -> None:
        closed(descriptor)
        remove_leftovers(tmp_path)

    monkeypatch.setattr("os.close", close)
    assert usable_directory(tmp_path, "--out") == tmp_path
