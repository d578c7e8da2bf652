"""Working directories do not outlive the next command, however the one that made them ended."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from wuneng.records.leftovers import KERNEL_BUILD
from wuneng.records.scratch import scratch_directory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_killed_process_leaves_a_directory_only_until_the_next(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wuneng.records.scratch import scratch_directory\n"
        "with scratch_directory('.wuneng-x-', Path(sys.argv[1])) as path:\n"
        "    (path / 'big').write_text('x'); print(path, flush=True); time.sleep(300)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    with scratch_directory(".wuneng-x-", place) as mine:
        assert theirs.is_dir()  # it is in use
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert theirs.is_dir()
    assert not mine.exists()
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / f".wuneng-x-{'0' * 32}").symlink_to(outside)
    with scratch_directory(".wuneng-x-", place):
        assert not theirs.exists()
    assert outside.is_dir()


@pytest.mark.parametrize("name", ["wuneng-x-v1", ".wuneng-x-v1", ".wuneng-x-" + "0" * 31])
def test_a_users_own_directory_stays_however_old(tmp_path: Path, name: str) -> None:
    mine = tmp_path / name
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    os.utime(mine, (0, 0))
    for prefix in ("wuneng-x-", ".wuneng-x-"):
        with scratch_directory(prefix, tmp_path) as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert (mine / "thesis.tex").exists()


def test_every_place_that_makes_one_gives_it_a_name_that_nobody_chooses() -> None:
    call = re.compile(r"scratch_directory\((\S+?)[,)]")
    found = {
        name
        for path in (ROOT / "wuneng").rglob("*.py")
        for name in call.findall(path.read_text(encoding="utf-8"))
    } - {"prefix:"}
    kinds = ("bench", "eval", "export", "kernels")
    assert found == {"KERNEL_BUILD", *(f'".wuneng-{kind}-"' for kind in kinds)}
    assert KERNEL_BUILD.startswith(".")


def test_a_failure_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), scratch_directory(".wuneng-x-", tmp_path):
        raise ValueError("inside")
    assert not list(tmp_path.iterdir())


def test_no_other_code_makes_temporary_directories() -> None:
    """Theirs would stay behind when the process is killed."""
    makes = re.compile(r"\b(mkdtemp|TemporaryDirectory)\b")
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("wuneng", "wuneng_cli")
        for path in (ROOT / package).rglob("*.py")
        if makes.search(path.read_text(encoding="utf-8"))
    }
    assert found == set()
