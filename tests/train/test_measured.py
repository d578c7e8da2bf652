"""What a run would take, from a second of steps: the update does not grow with the rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.study.test_study import written
from wuneng.train.measured import _Stepper
from wuneng.train.plan import ArmPlan, plan_run
from wuneng.train.step import Numerics


def first_arm(folder: Path, *changes: str) -> ArmPlan:
    given = written(folder, *changes, tune={}, seeds=2)
    return next(iter(plan_run(given.recipe.model_copy(update={"study": None})).arms.values()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_update_of_a_measured_step_is_timed_by_itself(tmp_path: Path, optimizer: str) -> None:
    arm = first_arm(tmp_path, f"training.optimizer={optimizer}")
    stepper = _Stepper(arm, Numerics.pick(torch.device("cpu"), torch.float32), 16)
    taken = stepper.seconds(1)
    assert 0 < stepper.updating < taken


def test_a_whole_batch_takes_one_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm = first_arm(tmp_path)
    stepper = _Stepper(arm, Numerics.pick(torch.device("cpu"), torch.float32), 16)
    stepper.updating = 0.2
    monkeypatch.setattr(_Stepper, "seconds", lambda self, rows: 0.2 + 0.1 * rows * 16)
    whole = 0.2 + 0.1 * arm.training.tokens_per_step
    assert [stepper.whole_seconds(rows) for rows in (1, 2, 5)] == pytest.approx([whole] * 3)
