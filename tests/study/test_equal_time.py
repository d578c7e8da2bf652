"""``match: time``: widths from measured steps, written in the plan, and taken from there."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.study.test_study import Stopped, study, written
from wuneng.errors import DataError, RecipeError
from wuneng.study import measured_widths, plan_study
from wuneng.study import study as studies
from wuneng.study.equal_time import WIDTHS, planned_widths
from wuneng.train.measured import step_seconds
from wuneng.train.plan import ArmPlan

WANTED = {"match": "time", "tune": {}, "ladder": {"sizes": ["12k"], "tokens_per_parameter": [0.01]}}
PER_CHANNEL, START = 1e-4, {"wuneng": 0.03, "mha": 0.01}


def made_up(arms: Sequence[ArmPlan], device: str, rounds: int) -> list[list[float]]:
    """Steps on a machine whose speed wanders from round to round by a factor of two."""
    draws = random.Random(rounds)
    paces = [draws.uniform(1, 2) for _ in range(rounds)]
    return [[pace * seconds(arm) for arm in arms] for pace in paces]


def seconds(arm: ArmPlan) -> float:
    assert arm.config.intermediate_size is not None
    return START[arm.name] + PER_CHANNEL * arm.config.intermediate_size


def test_the_width_is_that_at_which_the_first_arm_s_time_is_taken(tmp_path: Path) -> None:
    given = written(tmp_path, **WANTED)
    before = plan_study(given)
    widths = measured_widths(given, before.runs, made_up)
    plan = plan_study(given, None, widths)
    [rung] = plan.rungs
    arms = plan.runs[rung.name].arms
    assert seconds(arms["mha"]) == pytest.approx(seconds(arms["wuneng"]), abs=4 * PER_CHANNEL)
    assert arms["wuneng"].config == before.runs[rung.name].arms["wuneng"].config
    found = plan.record()["rungs"][0][WIDTHS]
    assert found["mha"]["width"] == arms["mha"].config.intermediate_size
    assert found["mha"]["time"] == pytest.approx(1, abs=0.01)
    assert WIDTHS not in before.record()["rungs"][0]


def test_an_arm_s_own_match_goes_before(tmp_path: Path) -> None:
    given = written(tmp_path, "arms={wuneng: {}, mha: {match: flops}}", **WANTED)
    assert measured_widths(given, plan_study(given).runs, made_up) == {"12k-x0.01": {}}


@pytest.mark.parametrize("factor", [3.0, 0.0])
def test_times_that_no_width_reaches_are_refused(tmp_path: Path, factor: float) -> None:
    """Slower with no feed-forward layer at all; and a clock that shows nothing."""

    def other(arms: Sequence[ArmPlan], device: str, rounds: int) -> list[list[float]]:
        times = {"wuneng": 1.0, "mha": 2.0}
        return [[times[arm.name] + factor * seconds(arm) for arm in arms] for _ in range(rounds)]

    given = written(tmp_path, **WANTED)
    with pytest.raises(RecipeError, match=r"study.match: time: at 12k-x0.01 .* of arm 'mha'"):
        measured_widths(given, plan_study(given).runs, other)


def test_a_study_that_goes_on_measures_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def once(*arguments: object) -> object:
        monkeypatch.setattr(studies, "measured_widths", None)
        return measured_widths(*arguments, made_up)  # type: ignore[arg-type]

    def stop(progress: object) -> None:
        raise Stopped

    monkeypatch.setattr(studies, "measured_widths", once)
    given = written(tmp_path, **WANTED)
    with pytest.raises(Stopped):
        study(given, tmp_path, stop)
    found, _ = study(given, tmp_path)
    assert found.record["plan"]["changes"] == []
    [rung] = found.record["rungs"]
    plan = json.loads((found.directory / "study-plan.json").read_text())["plan"]
    width = plan["rungs"][0][WIDTHS]["mha"]["width"]
    models = list((found.directory / rung["directory"]).glob("mha/seed-*/model/config.json"))
    assert len(models) == 2
    assert {json.loads(path.read_text())["intermediate_size"] for path in models} == {width}


def test_a_plan_without_widths_is_no_plan_of_such_a_study(tmp_path: Path) -> None:
    other = plan_study(written(tmp_path, **{**WANTED, "match": "flops"}))
    with pytest.raises(DataError, match=r"has no feed_forward_widths of 12k-x0\.01"):
        planned_widths(other.record(), other.runs)


def test_steps_are_really_timed(tmp_path: Path) -> None:
    arms = list(next(iter(plan_study(written(tmp_path, **WANTED)).runs.values())).arms.values())
    times = step_seconds(arms, "cpu", 3)
    assert [len(one) for one in times] == [2, 2, 2]
    assert all(second > 0 for one in times for second in one)
