"""Kernels compiled ahead of time, by one process that lasts as long as the tests do; and memory
that shows what a kernel leaves unwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A process whose GPU met an illegal access can do nothing more there: every later test would
    fail for the first one's fault. Under xdist another worker goes on in its place."""
    try:
        return (yield)
    except Exception as error:
        if item.get_closest_marker("gpu") and _device_is_lost():
            text = f"{item.nodeid}: the device is lost: {type(error).__name__}: {error}"
            if "PYTEST_XDIST_WORKER" in os.environ:
                os.write(2, f"{text.splitlines()[0]}\n".encode())
                os._exit(9)
            pytest.exit(text, returncode=3)
        raise


def _device_is_lost() -> bool:
    import torch

    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.fixture(scope="module")
def poisoned_memory() -> Iterator[None]:
    """torch.empty is filled with NaN, so that an element nobody writes is seen."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def compiled_ahead(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Takes a name of ``aot_worker.BUILDS``, answers with what the compiled kernel uses."""
    place = tmp_path_factory.mktemp("ahead")
    environment = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    with (
        (place / "stderr").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "tests.ops.aot_worker"],
            cwd=repository,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as worker,
    ):
        assert worker.stdin is not None
        assert worker.stdout is not None

        def compile_one(name: str) -> dict[str, Any]:
            print(name, file=worker.stdin, flush=True)
            for line in worker.stdout or ():
                answer: dict[str, Any] = json.loads(line)
                # Where a test was given up, its answer still arrives before the next one's.
                if answer["name"] == name:
                    assert "error" not in answer, answer["error"]
                    return answer
            raise AssertionError((place / "stderr").read_text()[-3000:])

        yield compile_one
        worker.stdin.close()


@pytest.fixture(scope="session")
def blocks(repository: Path) -> dict[str, Any]:
    """The C headers' structures by name."""
    from tests.ops.native_blocks import structures

    return dict(structures(repository / "wuneng" / "ops"))


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, ...]]:
    """The blocks that reach a kernel, which is not run."""
    from wuneng.ops.cross_head import native as cross_head
    from wuneng.ops.cross_head import native_pass
    from wuneng.ops.low_rank import native as low_rank
    from wuneng.ops.native import hybrid_token, model_token
    from wuneng.ops.state_head import native as state_head

    calls: list[tuple[bytes, ...]] = []

    def note(*given: bytes) -> int:
        calls.append(given)
        return 0

    names = ("low_rank", "projections", "cross_head", "hybrid_token", "state_head_forward")
    names += ("model_token", "cross_head_forward", "cross_head_backward")
    kernels = SimpleNamespace(**dict.fromkeys(names, note))
    for module in (low_rank, cross_head, native_pass, hybrid_token, model_token, state_head):
        monkeypatch.setattr(module, "_kernels", lambda _: kernels)
    return calls
