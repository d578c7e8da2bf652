"""Working directories do not outlive the next command, however the one that made them ended."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from wuneng.records.scratch import scratch_directory

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no file locks")
def test_a_killed_process_leaves_a_directory_only_until_the_next(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wuneng.records.scratch import scratch_directory\n"
        "with scratch_directory('wuneng-x-', Path(sys.argv[1])) as path:\n"
        "    (path / 'big').write_text('x'); print(path, flush=True); time.sleep(300)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    theirs = Path(process.stdout.readline().strip())
    with scratch_directory("wuneng-x-", place) as mine:
        assert theirs.is_dir()  # it is in use
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert theirs.is_dir()
    assert not mine.exists()
    outside = tmp_path / "outside"
    outside.mkdir()
    (place / "wuneng-x-link").symlink_to(outside)
    with scratch_directory("wuneng-x-", place):
        assert not theirs.exists()
    assert outside.is_dir()


def test_a_failure_inside_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), scratch_directory("wuneng-x-", tmp_path):
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
    assert found == {"wuneng/records/scratch.py"}
