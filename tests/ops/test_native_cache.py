"""A kept kernel is loaded only when it is surely the one that was built, by this user."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.damage import alter, empty, truncate
from wuneng.ops.native import compiler, compiler_process, library_cache
from wuneng.records.scratch import scratch_directory

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or os.name != "posix", reason="no C compiler on this machine"
)


def _forget() -> None:
    """As if the process were new."""
    compiler.library.cache_clear()
    compiler._given_up.clear()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    root, temporary = tmp_path / "cache", tmp_path / "tmp"
    root.mkdir(mode=0o700)
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(root))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    # What is kept matters here, not how fast it is: the smallest source, unoptimised.
    monkeypatch.setattr(compiler, "_FLAGS", ("-O0", "-std=gnu11", "-fPIC"))
    monkeypatch.setattr(compiler, "_SOURCES", ("cross_head/cross_head.c",))
    _forget()
    yield root / "wuneng"
    assert not list(temporary.iterdir())  # whatever was built there is gone
    _forget()


def _kept(directory: Path) -> Path:
    return directory / f"state_head_16_{compiler._fingerprint(tuple(compiler._compiler()))}.so"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every library that is opened, in order."""
    paths: list[Path] = []
    real = compiler.ctypes.CDLL

    def note(name: str) -> object:
        paths.append(Path(name))
        return real(name)

    monkeypatch.setattr(compiler.ctypes, "CDLL", note)
    return paths


def _no_checksum(library: Path) -> None:
    (library.parent / f"{library.name}.sha256").unlink()


def _other_checksum(library: Path) -> None:
    (library.parent / f"{library.name}.sha256").write_text("0" * 64, encoding="ascii")


def _link(library: Path) -> None:
    library.rename(library.parent.parent / "elsewhere.so")
    library.symlink_to(library.parent.parent / "elsewhere.so")


def _writable(library: Path) -> None:
    library.chmod(0o777)


def _directory(library: Path) -> None:
    library.unlink()
    library.mkdir()


@pytest.mark.parametrize(
    "damage", [truncate, empty, alter, _no_checksum, _other_checksum, _link, _writable]
)
def test_a_doubtful_library_is_never_opened_and_built_anew(
    damage: Callable[[Path], None], cache: Path, opened: list[Path]
) -> None:
    assert compiler.library(16) is not None
    kept = _kept(cache)
    good = kept.read_bytes()
    damage(kept)
    opened.clear()
    _forget()
    assert compiler.library(16) is not None
    assert kept not in opened
    _forget()
    opened.clear()
    assert compiler.library(16) is not None
    assert opened == [kept]
    assert kept.read_bytes() == good
    assert not kept.is_symlink()
    assert not kept.stat().st_mode & 0o022


def test_a_directory_in_the_librarys_place_costs_only_the_keeping(cache: Path) -> None:
    assert compiler.library(16) is not None
    _directory(_kept(cache))
    _forget()
    assert compiler.library(16) is not None


def test_the_directory_is_made_private(cache: Path) -> None:
    assert compiler.library(16) is not None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_an_earlier_versions_directory_becomes_private(cache: Path) -> None:
    cache.mkdir(mode=0o755)
    assert compiler.library(16) is not None
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert _kept(cache).exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to be two users")
@pytest.mark.parametrize("whose", ["directory", "parent", "library"])
def test_another_users_library_is_not_opened(whose: str, cache: Path, opened: list[Path]) -> None:
    """As in a cache directory that several users share: with a matching checksum beside it."""
    assert compiler.library(16) is not None
    kept = _kept(cache)
    os.chown({"directory": cache, "parent": cache.parent, "library": kept}[whose], 65534, 65534)
    opened.clear()
    _forget()
    assert compiler.library(16) is not None
    assert kept not in opened


def test_a_parent_where_others_may_rename_is_not_trusted(cache: Path, opened: list[Path]) -> None:
    assert compiler.library(16) is not None
    cache.parent.chmod(0o777)
    opened.clear()
    _forget()
    assert compiler.library(16) is not None
    assert _kept(cache) not in opened
    cache.parent.chmod(0o1777)  # as /tmp: nobody renames what is another's
    assert library_cache.own_directory() == cache


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root to be two users")
def test_the_owner_of_a_sticky_directory_may_rename(cache: Path) -> None:
    cache.parent.chmod(0o1777)
    assert library_cache.own_directory() == cache
    os.chown(cache.parent, 65534, 65534)
    assert library_cache.own_directory() is None


@pytest.mark.parametrize(
    ("name", "members", "trusted"), [("me", [], True), ("me", ["eve"], False), ("lab", [], False)]
)
def test_a_group_that_others_may_be_in_is_not_trusted(
    name: str, members: list[str], trusted: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where it is the user's first group: ``users`` is everybody's."""
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name="me"))
    group = SimpleNamespace(gr_name=name, gr_mem=members)
    monkeypatch.setattr("grp.getgrgid", lambda _: group)
    cache.parent.chmod(0o770)
    assert (library_cache.own_directory() == cache) is trusted


def test_without_a_home_nothing_is_written_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert compiler.library(16) is not None
    assert sorted(tmp_path.iterdir()) == before


def test_the_bytes_are_on_the_disk_before_they_have_the_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        steps.append("fsync")
        fsync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        steps.append(f"name{Path(target).suffix}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    assert compiler.library(16) is not None
    assert steps == ["fsync", "name.so", "fsync", "name.sha256", "fsync"]
    content = _kept(cache).read_bytes()
    digest = (cache / f"{_kept(cache).name}.sha256").read_text(encoding="ascii").strip()
    assert digest == hashlib.sha256(content).hexdigest()


def _is_running(process: int) -> bool:
    """Not so of one that has ended and whose parent has not asked yet."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_hanging_compiler_is_announced_and_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its children hold its output open: they end with it. One wait is enough for all sizes."""
    pids = tmp_path / "pids"
    monkeypatch.setenv("CC", _script(tmp_path / "slow-cc", f"sleep 300 & echo $! >{pids}; wait"))
    monkeypatch.setattr(compiler_process, "_PATIENCE", 1.5)
    monkeypatch.setattr(compiler_process, "_SILENCE", 0.5)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert compiler.library(16) is None
        assert compiler.library(32) is None
    assert time.monotonic() - start < 10
    announced, given_up = [record.getMessage() for record in caplog.records]
    assert announced.startswith(f"waiting for {tmp_path}/slow-cc")
    assert given_up.endswith("did not end within 1.5 s")
    child, last = int(pids.read_text()), time.monotonic() + 10
    while _is_running(child):
        assert time.monotonic() < last
        time.sleep(0.05)


def test_a_slow_compiler_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every source of every head size is a call of its own."""
    monkeypatch.setattr(compiler_process, "_SILENCE", 0.1)
    slow = _script(tmp_path / "cc", "sleep 0.5")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            compiler_process.run_compiler([slow])
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for {slow}, which builds the C kernels (for 20 s at most)"
    ]


def test_what_a_wrapper_leaves_in_the_background_ends_with_it(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    compiler_process.run_compiler([_script(tmp_path / "cc", f"sleep 300 & echo $! >{pids}")])
    child, last = int(pids.read_text()), time.monotonic() + 10
    while _is_running(child):
        assert time.monotonic() < last
        time.sleep(0.05)


def test_patience_is_twenty_seconds() -> None:
    assert compiler_process._PATIENCE == 20


def test_a_broken_compiler_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loud = "printf 'In file x:\\n\\033]0;title\\007 fatal error: no vectors\\nmore\\n' >&2; exit 1"
    monkeypatch.setenv("CC", _script(tmp_path / "broken-cc", loud))
    with caplog.at_level(logging.WARNING):
        assert compiler.library(16) is None
        assert compiler.library(32) is None
    (record,) = caplog.records
    message = record.getMessage()
    assert "fatal error: no vectors" in message
    assert message.isprintable()


def test_leftovers_of_killed_builds_are_removed(cache: Path) -> None:
    assert compiler.library(16) is not None
    old, mine, file = (cache / f".build-{name}" for name in ("0" * 32, "mine", "f" * 32))
    old.mkdir()
    (old / "variant0.so").write_bytes(b"x")
    mine.mkdir()
    file.write_bytes(b"not a directory")
    long_ago = time.time() - 90_000
    for directory in (old, mine):
        os.utime(directory, (long_ago, long_ago))
    with scratch_directory(".build-", cache) as running:
        os.utime(running, (long_ago, long_ago))
        _forget()
        assert compiler.library(16) is not None  # loaded, not built: leftovers go all the same
        assert not old.exists()
        assert all(path.exists() for path in (running, mine, file))
