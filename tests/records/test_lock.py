"""The lock of a run directory: what it promises, kept by real processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from wuneng.errors import DiskError, InputError
from wuneng.records.lock import InUse, is_locked, locked

HOLD = """
import sys
from pathlib import Path
from wuneng.records.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the lock in the body."""
    command = [sys.executable, "-c", HOLD, str(directory)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_process_that_holds_it_is_named(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        assert is_locked(tmp_path)
        for _ in range(2):  # asking takes the name away from nobody
            with pytest.raises(InUse, match=rf"another process \(id {process.pid}\) is train"):
                locked(tmp_path).__enter__()
        assert (tmp_path / ".lock").read_text(encoding="ascii") == str(process.pid)


def test_a_killed_holder_holds_it_no_more(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / ".lock").exists()
        assert not is_locked(tmp_path)
        with locked(tmp_path):
            assert is_locked(tmp_path)


def test_a_holder_whose_name_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path):
        (tmp_path / ".lock").write_bytes(b"")
        with pytest.raises(InUse, match=r"another process \(id unknown\)"):
            locked(tmp_path).__enter__()


def test_a_directory_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"\.lock is a directory, expected a file of our own"):
        locked(tmp_path).__enter__()
    assert not is_locked(tmp_path)


@pytest.mark.parametrize("exists", [True, False])
def test_a_planted_link_is_not_followed(tmp_path: Path, exists: bool) -> None:
    precious = tmp_path / "precious"
    if exists:
        precious.write_text("mine", encoding="utf-8")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(precious)
    with pytest.raises(InputError, match=r"\.lock is a symbolic link"):
        locked(tmp_path / "run").__enter__()
    assert not is_locked(tmp_path / "run")
    assert precious.exists() == exists
    assert not exists or precious.read_text(encoding="utf-8") == "mine"


def test_a_link_planted_after_the_look_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_text("mine", encoding="utf-8")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    monkeypatch.setattr(Path, "is_symlink", lambda path: False)
    with pytest.raises(DiskError):
        locked(tmp_path).__enter__()
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_place_that_is_read_only_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(DiskError, match=rf"cannot write {tmp_path}/\.lock: Permission denied"):
            locked(tmp_path).__enter__()
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_that_is_read_only_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("wuneng.records.lock.open_no_link", refuse)
    with pytest.raises(DiskError, match="Read-only file system"):
        locked(tmp_path).__enter__()
    assert not is_locked(tmp_path)


def test_where_there_are_no_locks_nothing_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on some network file systems; a marker in its place would outlive a killed process."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with locked(tmp_path), locked(tmp_path):
        assert not is_locked(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
