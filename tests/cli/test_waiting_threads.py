"""Threads that wait do so briefly, unless the user says otherwise; said before torch is there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

_SAYS = """
import os, sys
from wuneng_cli import main
main.app = lambda **_: print(os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
main.main()
"""
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ({"OMP_WAIT_POLICY": ""}, "10000"),
    ],
)
def test_what_the_user_says_stays(given: dict[str, str], found: str) -> None:
    environment = {n: value for n, value in os.environ.items() if n not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", _SAYS],
        env=environment | given,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [found, "False"]
