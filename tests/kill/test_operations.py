"""Every command that writes, disturbed at a few of its file operations.

WUNENG_TEST_SEED draws others.

``python -m tests.kill`` goes on for as long as it is told; what it found is in log.md.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kill.harness import KILL, MODES, Scenario, Server
from tests.kill.scenarios import scenarios

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs LD_PRELOAD and fork")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        running = Server(tmp_path_factory.mktemp("server"))
    except OSError as error:
        pytest.skip(f"the shim cannot be built: {error}")
    yield running
    running.close()


@pytest.mark.parametrize("scenario", scenarios(), ids=lambda scenario: scenario.name)
def test_a_disturbed_command_run_again_leaves_what_an_undisturbed_one_does(
    server: Server, tmp_path: Path, scenario: Scenario
) -> None:
    seed = int(os.environ.get("WUNENG_TEST_SEED", "1"))
    draw = random.Random(seed)
    scenario.measure(server, tmp_path)
    for name in ("killed", draw.choice(list(MODES))):
        at = draw.randint(1, scenario.operations)
        wrong = scenario.disturb(server, tmp_path, MODES[name], at)
        assert wrong is None, f"{name}, seed {seed}: {wrong}"


def test_the_harness_sees_what_it_should(server: Server, tmp_path: Path) -> None:
    """All kinds of operations, and a file that is missing or left over."""
    scenario = scenarios()[0]
    scenario.measure(server, tmp_path)
    assert len(scenario.kinds) == scenario.operations > 150
    # open, write, fsync, rename, mkdir, unlink, symlink
    assert set("owfrmus") <= set(scenario.kinds)
    for kind in "owfrmus":
        killed = scenario.kinds.index(kind) + 1
        with scenario.copy(tmp_path) as place:
            ended = server.run(place, scenario.arguments, KILL, killed)
        assert (ended.status, ended.last[0], ended.operations) == (-signal.SIGKILL, kind, killed)
    with scenario.copy(tmp_path) as place:
        assert server.run(place, scenario.arguments, patience=0.01).hung
    scenario.files |= {"runs/tiny/never-written"}
    wrong = scenario.disturb(server, tmp_path, KILL, scenario.operations)
    assert wrong is not None
    assert "missing: ['runs/tiny/never-written']" in wrong
