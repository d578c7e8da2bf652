"""The harness finds what it should find; and, for about a minute, nothing is found."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import supervisor
from tests.fuzz.__main__ import counts, summary
from tests.fuzz.kinds import KINDS, make_originals
from tests.fuzz.mutation import mutated_bytes, mutated_json, mutated_text
from tests.fuzz.supervisor import random_of, run_cases, tried
from wuneng.errors import DataError, RunError

#: Of all kinds together; WUNENG_TEST_SEED draws others.
CASES = 1200


def _raise(error: BaseException) -> Callable[[], object]:
    def call() -> None:
        raise error

    return call


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda: None, "accepted"),
        (_raise(DataError("x.txt, line 1: wrong")), "refused"),
        (_raise(RunError("it failed")), "failed"),
        (_raise(SystemExit(0)), "accepted"),
        (_raise(SystemExit(2)), "no message"),
        (_raise(SystemExit(3)), "exit code"),
        (_raise(DataError("")), "no message"),
        (_raise(DataError("x" * 30_000)), "refused"),
        (_raise(SystemExit("x")), "exit code"),
        (lambda: (print("x" * 30_000, file=sys.stderr), sys.exit(2)), "long message"),
        (_raise(KeyError("x")), "traceback"),
        (_raise(Panic("x")), "traceback"),
        (_raise(MemoryError()), "memory"),
        (lambda: print("\ud800"), "traceback"),
    ],
)
def test_outcomes(call: Callable[[], object], outcome: str) -> None:
    assert tried(call)[0] == outcome


class Odd:
    """Some cases end in ways of which each must be found; the others are fine."""

    name = "odd"

    def case(self, random: Any, directory: Path) -> Callable[[], object]:
        number = int(random)
        (directory / "mutant").write_text(str(number))
        return {
            2: _raise(ZeroDivisionError("here")),
            4: lambda: os.kill(os.getpid(), signal.SIGSEGV),
            6: lambda: bytearray(b"x") * (300 << 20),
            8: self.spin,
        }.get(number, lambda: None)

    def spin(self) -> None:
        while True:
            time.process_time()


def test_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "SECONDS", 5.0)
    monkeypatch.setattr(supervisor, "GROWTH", 200 << 20)  # pages of 2 GB may take longer than 5 s
    monkeypatch.setattr(supervisor, "random_of", lambda seed, kind, number: number)
    found = {v.number: v.outcome for v in run_cases([(Odd(), 10)], 0, tmp_path)}
    assert sorted(found) == list(range(10))
    bad = {2: "traceback", 4: "signal", 6: "memory", 8: "hang"}
    assert found == {n: bad.get(n, "accepted") for n in range(10)}
    kept = {path.name: (path / "mutant").read_text() for path in (tmp_path / "findings").iterdir()}
    assert kept == {f"odd-{number}": str(number) for number in bad}
    verdict = (tmp_path / "findings" / "odd-2" / "VERDICT.txt").read_text()
    assert "ZeroDivisionError: here" in verdict
    assert "signal 11" in (tmp_path / "findings" / "odd-4" / "VERDICT.txt").read_text()


class Slow:
    """Case 1 waits in vain each time it is tried, case 2 only the first time."""

    name = "slow"

    def case(self, random: Any, directory: Path) -> Callable[[], object]:
        number, tries = int(random), directory.parent / f"tries-{random}"
        tries.write_text((tries.read_text() if tries.exists() else "") + "x")
        waits = number == 1 or (number == 2 and tries.read_text() == "x")
        return lambda: time.sleep(60 if waits else 0)


def test_a_machine_that_stood_still_is_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CLOCK_SECONDS", 1.0)
    monkeypatch.setattr(supervisor, "random_of", lambda seed, kind, number: number)
    found = {v.number: v.outcome for v in run_cases([(Slow(), 4)], 0, tmp_path)}
    assert found == {0: "accepted", 1: "hang", 2: "accepted", 3: "accepted"}
    tries = [(tmp_path / f"tries-{number}").read_text() for number in range(4)]
    assert tries[1:3] == ["xx", "xx"]


def test_a_case_follows_from_seed_kind_and_number() -> None:
    def mutants(number: int) -> tuple[object, ...]:
        random = random_of(3, "x", number)
        return (
            mutated_bytes(random, b"some bytes, 12 of them"),
            mutated_text(random, "a: 1\nb: {c: 2}\n"),
            repr(mutated_json(random, {"a": [1, "x", None], "b": {"c": 2.5}})),
        )

    assert [mutants(n) for n in range(50)] == [mutants(n) for n in range(50)]
    assert len({mutants(n) for n in range(50)}) == 50


def test_counts_add_up() -> None:
    assert sum(counts(100_000, list(KINDS)).values()) == pytest.approx(100_000, abs=5)
    assert counts(10, ["run"]) == {"run": 10}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_minute_of_fuzzing(tmp_path: Path) -> None:
    """Longer: ``python -m tests.fuzz --cases 100000 --seed 1``."""
    seed = int(os.environ.get("WUNENG_TEST_SEED", "1"))
    (tmp_path / "originals").mkdir()
    originals = make_originals(tmp_path / "originals")
    kinds = [(KINDS[name][0](originals), n) for name, n in counts(CASES, list(KINDS)).items()]
    start = time.monotonic()
    verdicts = list(run_cases(kinds, seed, tmp_path / "work"))
    text = summary(verdicts, seed, time.monotonic() - start)
    print(text)
    assert {verdict.kind for verdict in verdicts} == set(KINDS)
    assert any(verdict.outcome == "accepted" for verdict in verdicts)
    assert any(verdict.outcome == "refused" for verdict in verdicts)
    assert not [v for v in verdicts if not v.fine], text
