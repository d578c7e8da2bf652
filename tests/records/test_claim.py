"""Claims on directories: one has it at a time, and who lost it finds out before it writes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from wuneng.records import append_jsonl, claim, write_json
from wuneng.records.atomic import directory_written_atomically
from wuneng.records.claim import Claim, ClaimLost, Vacancy, Watch, claimed
from wuneng.records.claimant import Claimant, Holder
from wuneng.records.fence import fenced

A, B = Claimant("a", "a", 0.05, 6), Claimant("b", "b", 0.05, 6)
HERE = Claimant(beat=0.05, patience=10**6)


def take(place: Path, claimant: Claimant = A) -> Claim:
    found = Watch(place, claimant).look()
    assert isinstance(found, Vacancy)
    taken = found.claim(claimant)
    assert taken is not None
    return taken


def silence(taken: Claim) -> None:
    """As if its process were stopped."""
    taken._released.set()
    taken._thread.join()


def taken_over(place: Path, by: Claimant = B) -> Claim:
    watch = Watch(place, by)
    while not isinstance(found := watch.look(), Vacancy):
        time.sleep(0.02)
    taken = found.claim(by)
    assert taken is not None
    return taken


def test_who_has_it_is_told_and_keeps_it(tmp_path: Path) -> None:
    place = tmp_path / "arm" / "seed-0"
    taken, watch = take(place), Watch(place, B)
    end = time.monotonic() + 3 * A.lease
    while time.monotonic() < end:
        found = watch.look()
        assert isinstance(found, Holder)
        assert str(found) == f"a, process {os.getpid()}"
        time.sleep(0.02)
    taken.check()
    taken.release()
    assert not (tmp_path / "arm").exists(), "made for the claim, and empty"


def test_of_many_one_gets_it(tmp_path: Path) -> None:
    vacancy, found = Vacancy(tmp_path), []
    gate = threading.Barrier(8)

    def ask() -> None:
        gate.wait()
        found.append(vacancy.claim(HERE))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in found) <= 1
    for one in found:
        if one is not None:
            one.release()
    assert list(tmp_path.iterdir()) == []


def test_a_silent_holder_loses_it_and_finds_out_before_it_writes(tmp_path: Path) -> None:
    old = take(tmp_path)
    silence(old)
    new = taken_over(tmp_path)
    writes: list[Callable[[], None]] = [
        lambda: write_json(tmp_path / "result.json", {}),
        lambda: append_jsonl(tmp_path / "metrics.jsonl", {}),
        lambda: directory_written_atomically(tmp_path / "step-1", 0).__enter__(),
    ]
    with fenced("", old.check):
        for write in writes:
            with pytest.raises(ClaimLost, match="has taken over"):
                write()
    old.release()
    assert [path.name for path in tmp_path.iterdir()] == [".claim-2"]
    with new.kept():
        write_json(tmp_path / "result.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_checkpoint_half_written_when_it_was_lost_never_appears(tmp_path: Path) -> None:
    old = take(tmp_path)

    def write_slowly() -> None:
        with old.kept(), directory_written_atomically(tmp_path / "step-1", 0) as half:
            (half / "weights").write_bytes(b"old")
            silence(old)
            new = taken_over(tmp_path)
            with new.kept(), directory_written_atomically(tmp_path / "step-1", 0) as whole:
                assert whole != half
                (whole / "weights").write_bytes(b"new")

    with pytest.raises(ClaimLost):
        write_slowly()
    assert (tmp_path / "step-1" / "weights").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_holder_killed_on_this_machine_is_replaced_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from wuneng.records.claim import Vacancy; from wuneng.records.claimant import Claimant\n"
        "Vacancy(Path(sys.argv[1])).claim(Claimant()); print(flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert isinstance(Watch(tmp_path, HERE).look(), Holder)
        process.kill()
        process.stdout.read()  # it has ended, though nobody has waited for it yet
        time.sleep(0.1)
        with claimed(tmp_path, HERE, print):
            assert [path.name for path in tmp_path.iterdir()] == [".claim-2"]


def told_by_an_ended_process() -> bytes:
    code = (
        "from wuneng.records.claimant import Claimant; print(Claimant(beat=0.05).told(1).decode())"
    )
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout[
        :512
    ]


def test_who_takes_over_from_one_killed_while_it_took_over(tmp_path: Path) -> None:
    """It had made its claim, and had not deleted the one before: nobody ever got the directory."""
    ended = told_by_an_ended_process()
    for number in (3, 4):
        (tmp_path / f".claim-{number}").write_bytes(ended)
    found = Watch(tmp_path, HERE).look()
    assert isinstance(found, Vacancy)
    assert found.settling == 0
    with take(tmp_path, HERE).kept():
        assert [path.name for path in tmp_path.iterdir()] == [".claim-5"]
    for number in (3, 4):
        (tmp_path / f".claim-{number}").write_bytes(ended)
    claim.remove_ended(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_claim_below_that_may_still_be_written_under_is_waited_for(tmp_path: Path) -> None:
    """Who was to wait for a silent holder was killed: whoever comes next waits in its place."""
    old = take(tmp_path)
    silence(old)
    (tmp_path / ".claim-2").write_bytes(told_by_an_ended_process())
    found = Watch(tmp_path, HERE).look()
    assert isinstance(found, Vacancy)
    assert found.settling == pytest.approx(3 * A.beat)
    taken = found.claim(HERE)
    assert taken is not None
    with pytest.raises(ClaimLost):
        old._renew()
    old.release()
    with taken.kept():
        assert [path.name for path in tmp_path.iterdir()] == [".claim-3"]


def test_what_one_left_that_was_killed_while_it_claimed_goes(tmp_path: Path) -> None:
    """Killed between the two names of its claim, it left the first for good."""
    killed = tmp_path / ".claim-1.18b9ce644e2cb6c2.partial"
    killed.write_bytes(A.told(0))
    others = tmp_path / ".claim-x.partial"
    others.write_text("not ours")
    with take(tmp_path).kept():
        assert not killed.exists()
    assert list(tmp_path.iterdir()) == [others]


def test_time_in_which_the_watcher_stood_still_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk that all share may have been away for a minute: nobody could show a sign of life."""
    taken, now = take(tmp_path), [0.0]
    silence(taken)
    watch = Watch(tmp_path, B)
    monkeypatch.setattr(claim, "_clock", lambda: now[0])
    assert isinstance(watch.look(), Holder)
    now[0] += 1000.0
    assert isinstance(watch.look(), Holder)


def test_a_claim_that_cannot_be_read_holds_for_a_lease(tmp_path: Path) -> None:
    (tmp_path / ".claim-7").write_bytes(b"")
    watch = Watch(tmp_path, B)
    found = watch.look()
    assert isinstance(found, Holder)
    assert str(found) == "an unknown host"
    taken = taken_over(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".claim-8"]
    taken.release()


def test_where_files_cannot_be_linked_one_still_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    taken = take(tmp_path)
    assert Vacancy(tmp_path).claim(B) is None
    taken.check()
    taken.release()


def test_who_waits_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "_WORTH_TELLING", 0.05)
    taken, told = take(tmp_path), []

    def note(text: str) -> None:
        told.append(text)
        taken.release()

    with claimed(tmp_path, B, note):
        pass
    assert told == [f"waiting for a, process {os.getpid()}, which has {tmp_path}"]
