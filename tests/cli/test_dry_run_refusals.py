"""A dry run refuses what the run would refuse here, unless another machine is planned for."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.cli.commands import outcome

run = partial(outcome, "train")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--device", "cuda:99"), "device cuda:99: "),
        (("--device", "cpu", "--set", "training.precision=fp16"), "precision fp16 needs a GPU"),
        (("--profile", "9-8"), "--profile"),
        (("--out", "tiny.yaml/run"), "--out"),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses(
    tiny: str, arguments: tuple[str, ...], expected: str
) -> None:
    """``--device cuda --dry-run`` on a machine without a GPU was exit code 0."""
    for command in (("--dry-run",), ()):
        code, _, err = run(tiny, *arguments, *command)
        assert code == 2
        assert expected in err
        if command:
            assert [path.name for path in Path().iterdir()] == ["tiny.yaml"]


def test_a_package_that_is_missing_stops_a_dry_run(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name)
    )
    code, _, err = run(tiny, "--dry-run", "--no-measure", "--set", "loggers=[wandb]")
    assert code == 2
    assert "pip install wandb" in err


@pytest.mark.parametrize("elsewhere", [("--roof", "H100", "--processes", "8"), ("--no-measure",)])
def test_another_machine_can_be_planned_for(tiny: str, elsewhere: tuple[str, ...]) -> None:
    fp16 = ("--set", "training.precision=fp16", "--set", "training.batch_size=8")
    code, out, err = run(tiny, "--dry-run", "--device", "cuda:99", *fp16, *elsewhere)
    assert (code, err) == (0, "")
    assert "parameters" in out


def test_a_study_is_refused_in_a_dry_run_too(tiny: str) -> None:
    several = ("--set", "training.learning_rate=1e-3,2e-3")
    code, _, err = run(tiny, "--dry-run", "--device", "cuda:99", *several)
    assert code == 2
    assert "--no-measure" in err
