"""Commands on several hosts work on one run: every unit once, whatever happens to them."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hosts.rounds import UNITS, disturbed_round, left, write_recipe
from tests.hosts.workers import hosts
from tests.train.small_run import RECIPE
from tests.train.tiny import Watcher
from wuneng.errors import InputError
from wuneng.recipe import load_recipe, read_written
from wuneng.records import read_json, verify
from wuneng.study import run_study
from wuneng.train import Workers, run
from wuneng.train.resume import differences


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe, and what one command leaves of it."""
    place = tmp_path_factory.mktemp("hosts")
    recipe = write_recipe(place)
    with hosts(recipe, place / "alone") as alone:
        alone.start("a").join()
    return recipe, {unit: left(place / "alone", unit) for unit in UNITS}


def test_two_killed_and_stopped_at_random_finish_every_unit_once(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """`python -m tests.hosts` goes on with it for fifty kills: see tests/hosts/log.md."""
    recipe, expected = undisturbed
    found = disturbed_round(recipe, tmp_path / "run", expected, random.Random(4), 2, 0, 0.8)
    assert found.wrong == []
    assert found.kills == 2


def test_one_that_wakes_after_its_unit_was_taken_over_leaves_it_alone(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recipe, expected = undisturbed
    out = tmp_path / "run"
    with hosts(recipe, out) as workers:
        stopped = workers.start("a", stop_at=("wuneng", 6))
        while "step 6/" not in workers.said():
            assert stopped.is_alive()
            time.sleep(0.05)
        other = workers.start("b")
        while not (out / UNITS[0] / "result.json").exists():
            assert other.is_alive()
            time.sleep(0.05)
        names = ("result.json", "rows.json", "metrics.jsonl", "checksums.json", "model/config.json")
        files = [out / UNITS[0] / name for name in names]
        written = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
        os.kill(stopped.pid, signal.SIGCONT)
        for process in (stopped, other):
            process.join()
            assert process.exitcode == 0, workers.said()
        assert "another process has taken over, as this one showed no sign" in workers.said()
        assert "joining those who work in" in workers.said()
        assert sorted(workers.finished()) == sorted(UNITS)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files} == written
    assert {unit: left(out, unit) for unit in UNITS} == expected
    assert len(read_json(out / "environment.json")["joined"]) == 1


def test_one_of_them_trains_two_at_a_time(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recipe, expected = undisturbed
    out = tmp_path / "run"
    with hosts(recipe, out) as workers:
        for process in [workers.start("a"), workers.start("b", jobs=2)]:
            process.join()
            assert process.exitcode == 0, workers.said()
    assert {unit: left(out, unit) for unit in UNITS} == expected
    assert not list(out.rglob(".claim-*"))


def test_a_sweep_is_shared_too_and_what_diverged_is_not_tried_again(tmp_path: Path) -> None:
    training = {**RECIPE["training"], "clip": 0, "validate_every": 0}
    sweep = {"training.learning_rate": [0.001, 1.0e30]}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "training": training, "sweep": sweep}))
    out = tmp_path / "sweep"
    with hosts(path, out) as workers:
        for process in workers.start_together("a", "b"):
            process.join()
            assert process.exitcode == 0, workers.said()
        said = workers.said()
    record = read_json(out / "results.json")
    assert sorted(record["failed"]) == [
        f"learning_rate-1e30: {arm} (seed 0)" for arm in ("mha", "wuneng")
    ]
    assert all(record["points"][0]["arms"].values())
    assert said.count(" steps on cpu") == 4, "each was tried once"
    assert said.count("warning: learning_rate-1e30: mha (seed 0): step 2") == 1
    assert not list(out.rglob(".claim-*"))


def test_a_study_is_shared_too_and_concludes_as_of_one_command(tmp_path: Path) -> None:
    """Tuning ends before comparing begins, wherever its last unit is trained."""
    training = {**RECIPE["training"], "steps": 3, "validate_every": 0, "checkpoint_every": 0}
    tried = {"training.learning_rate": [0.001, 0.004, 0.002]}
    study = {"primary": "parity/loss", "tune": tried, "seeds": 2}
    path, out = tmp_path / "recipe.yaml", tmp_path / "study"
    path.write_text(yaml.safe_dump({**RECIPE, "training": training, "study": study}))
    alone = run_study(read_written(path), tmp_path / "alone", display=Watcher()).directory
    with hosts(path, out) as workers:
        for process in workers.start_together("a", "b"):
            process.join()
            assert process.exitcode == 0, workers.said()
        finished, said = workers.finished(), workers.said()
    units = {file.relative_to(out).parent for file in out.rglob("result.json")}
    assert units == {file.relative_to(alone).parent for file in alone.rglob("result.json")}
    assert len(finished) == len(units), "every unit once"
    assert "trained by" in said or "finished by another process" in said, "both took part"
    record, expected = (without_costs(read_json(run / "results.json")) for run in (out, alone))
    assert record == expected
    assert len({read_json(run / "study-plan.json")["sha256"] for run in (out, alone)}) == 1
    verify(out)
    assert not list(out.rglob(".claim-*"))


def without_costs(value: Any) -> Any:
    """``value`` less what the clock says."""
    if isinstance(value, dict):
        costs = ("seconds", "tokens_per_second")
        return {name: without_costs(v) for name, v in value.items() if name not in costs}
    return [without_costs(v) for v in value] if isinstance(value, list) else value


def test_another_recipe_is_refused_by_name(
    undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    recipe = undisturbed[0]
    with hosts(recipe, tmp_path / "run") as workers:
        stopped = workers.start("a", stop_at=("wuneng", 1))
        while "step 1/" not in workers.said():
            assert stopped.is_alive()
            time.sleep(0.05)
        other = load_recipe(recipe, ["training.learning_rate=0.5"])
        assert differences(load_recipe(recipe), other)
        for resume in ("auto", str(tmp_path / "run")):
            with pytest.raises(InputError, match=r"another recipe: training.learning_rate is"):
                run(other, tmp_path / "run", resume, workers=Workers(1))
