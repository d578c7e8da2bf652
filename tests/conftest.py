"""What every test may use: the shared test data, one thread, GPU tests skipped without a GPU."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

# No test may need the network. Here, because the first import of huggingface_hub reads it.
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

# No test writes into the cache of who runs them; what is started from here inherits the place.
_CACHE = tempfile.mkdtemp(prefix="wuneng-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = _CACHE
os.environ.pop("WUNENG_CACHE", None)
# Captured output is as wide as that of a pipe, whatever terminal the tests are started from.
os.environ.pop("COLUMNS", None)

# One thread for each process: tests share their cores, and threads that spin steal them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A page takes a second or two, in hundreds of commands: tests that look at one ask for ``pages``.
os.environ["WUNENG_REPORT"] = "0"
# The first import of Triton (transformers does it, for a conftest.py further down perhaps) settles
# whether kernels run on a GPU or in its interpreter on the CPU: `pytest -m gpu` runs them on the
# GPU, anything else does not.
if not any(pair == ("-m", "gpu") for pair in itertools.pairwise(sys.argv)):
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is none; torch is imported only if one is selected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in marked:
        item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands leave their report.html and curves, as they do by themselves."""
    monkeypatch.setenv("WUNENG_REPORT", "1")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The test data that is too large for the repository: $WUNENG_TEST_DATA, or beside it."""
    named = os.environ.get("WUNENG_TEST_DATA")
    place = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not place.is_dir():
        pytest.skip(f"test data not found in {place}; set WUNENG_TEST_DATA to where it is")
    return place


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that a test can fill, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tmpfs can only be mounted by root: the simulated full disk is tested above")
    yield place
    subprocess.run(["umount", str(place)], check=True)
