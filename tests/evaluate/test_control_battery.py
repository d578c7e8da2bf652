"""``wuneng eval --controls``: every control on the same items, and whose gain it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from wuneng.controls.names import KEEP, Control
from wuneng.errors import InputError, ModelError, NonFiniteError
from wuneng.evaluate.comparison import compare
from wuneng.evaluate.controls.attribution import attribute
from wuneng.evaluate.controls.wanted import controls_for, parse_controls
from wuneng.evaluate.job import Job
from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes

STATE = ["zero", "permute", "donor", "layers"]


def invoke(*arguments: object) -> Result:
    from wuneng_cli.main import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def here(text_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(text_run.parents[1])
    return text_run


def test_all_controls_on_text_and_harness_tasks(
    here: Path, make_files: Callable[..., Path]
) -> None:
    data = make_files(5, "copa_val.jsonl")
    done = invoke("eval", "--controls", "all", "--tasks", "validation,copa", "--data-dir", data)
    assert done.exit_code == 0, done.output
    record = json.loads((here / "controls.json").read_text())
    assert set(record["tasks"]) == {"validation", "copa"}
    figure = record["tasks"]["validation"]["metrics"]["bits_per_byte"]
    curves = [f"{name}:{length}" for name in ("frozen", "reset") for length in (1, 4, 16)]
    assert list(figure["controls"]) == [*STATE, *curves, "attention"]
    for name, one in figure["controls"].items():
        assert one["difference"] == pytest.approx(one["value"] - figure["value"]), name
        assert one["ci95"][0] <= one["difference"] <= one["ci95"][1]
        assert one["p"] <= one["p_holm"]
    # two layers of two heads each
    assert {name: np.shape(found) for name, found in figure["heads"].items()} == dict.fromkeys(
        ("attention", "state", "middle"), (2, 2)
    )
    silenced = [cell["difference"] for part in figure["heads"].values() for r in part for cell in r]
    assert all(silenced)
    assert len(set(silenced)) == 12
    assert [one["task"] for one in record["attribution"]] == ["copa", "validation"]
    assert record["environment"]["command_line"][0] == "wuneng"
    for part in ("under control", "as it is", "reset:16", "each head alone silenced", "state 1.1"):
        assert part in done.stdout, part
    assert "the right state" in done.stdout


@pytest.mark.usefixtures("pages")
def test_a_control_that_does_not_stay_finite_spoils_no_other(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What grows beyond all numbers is said; where everything does, there is nothing to report."""
    score = Job.score
    endless = {"zero", "state head 1.0"}

    def scored(job: Job, loaded: Any, control: Control = KEEP) -> Any:
        if str(control) in endless:
            raise NonFiniteError("row 0: NaN or infinite")
        return score(job, loaded, control)

    monkeypatch.setattr(Job, "score", scored)
    asked = ("eval", "--tasks", "validation", "--limit", 4, "--controls")
    done = invoke(*asked, "zero,reset:4,heads")
    assert done.exit_code == 0, done.output
    assert "zero: no figures, the model does not stay finite so (row 0: NaN" in done.stdout
    record = json.loads((here / "controls.json").read_text())
    assert set(record["not_finite"]) == endless
    figure = record["tasks"]["validation"]["metrics"]["bits_per_byte"]
    assert list(figure["controls"]) == ["reset:4"]
    assert figure["heads"]["state"][1][0] is None
    assert figure["heads"]["state"][1][1]["difference"]
    assert (here / "report.html").is_file()
    done = invoke(*asked, "zero")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "error: row 0: NaN or infinite" in done.stderr


def test_one_control_alone_says_the_same(here: Path) -> None:
    """The same scorer, whichever way it is asked."""
    asked = ("--tasks", "validation", "--limit", 6)
    done = invoke("eval", "--controls", "donor,reset:4,frozen:4", *asked, "--json")
    assert done.exit_code == 0, done.output
    together = json.loads(done.stdout)["tasks"]["validation"]["metrics"]["bits_per_byte"]
    for name in ("donor", "reset:4", "frozen:4"):
        done = invoke("eval", "--state", name, *asked)
        assert done.exit_code == 0, done.output
        assert f"letters/wuneng, state {name}" in done.stdout
        file = here / f"eval-state-{name.replace(':', '-')}.json"
        alone = json.loads(file.read_text())["tasks"]["validation"]["metrics"]["bits_per_byte"]
        one = together["controls"][name]
        assert alone["model"] == pytest.approx(one["value"], rel=1e-9)
        assert alone["baseline"] == pytest.approx(together["value"], rel=1e-9)
        assert alone["ci95"] == pytest.approx(one["ci95"], rel=1e-6, abs=1e-12)
        assert ("the right state" in done.stdout) == (name == "donor")


def test_generation_under_controls(here: Path, make_files: Callable[..., Path]) -> None:
    data = make_files(3, "gsm8k_test.jsonl", "gsm8k_train.jsonl")
    asked = ("--tasks", "gsm8k", "--num-fewshot", 0, "--limit", 2, "--data-dir", data)
    done = invoke("eval", "--controls", "donor,reset:4,attention", *asked)
    assert done.exit_code == 0, done.output
    done = invoke("eval", "--state", "layers", *asked)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    assert "--state layers: gsm8k lets the model write" in done.stderr
    done = invoke("eval", "--controls", "layers", *asked)
    assert done.exit_code == 2, done.output
    assert "--controls layers: gsm8k lets the model write" in done.stderr


def test_arms_without_state(here: Path) -> None:
    asked = ("--arm", "mha", "--tasks", "validation", "--limit", 3)
    done = invoke("eval", "--controls", "zero", *asked)
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--controls zero: the model has no state heads" in done.stderr
    done = invoke("eval", "--state", "reset:4", *asked)
    assert done.exit_code == 2
    assert "reset:4: the model has no state heads" in done.stderr
    done = invoke("eval", "--controls", "all", *asked)
    assert done.exit_code == 0, done.output
    assert "donor is left out: the model has no state heads" in done.stdout
    figure = json.loads((here / "controls.json").read_text())["tasks"]["validation"]["metrics"]
    assert list(figure["bits_per_byte"]["controls"]) == ["attention"]
    assert list(figure["bits_per_byte"]["heads"]) == ["attention"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--controls", "zeros"], "--controls: expected zero, permute, donor, layers, frozen:K"),
        (["--controls", "zeros"], "Did you mean 'zero'?"),
        (["--controls", "all,zero"], "--controls: all stands alone"),
        (["--controls", ","], "--controls: expected all, or some of zero"),
        (["--controls", "heads:3"], "--controls: heads takes no number"),
        (["--controls", "zero", "--state", "donor"], "--state asks for another comparison"),
        (["--controls", "zero", "--baseline", "mha"], "--baseline asks for another comparison"),
    ],
)
def test_mistakes(here: Path, arguments: list[str], message: str) -> None:
    done = invoke("eval", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())
    assert not (here / "controls.json").exists()


def test_which_controls_a_model_is_put_under(random_wuneng: Any, random_llama: Any) -> None:
    model = random_wuneng()
    controls, remarks = controls_for(model, parse_controls("reset, zero,reset:4"), 17)
    assert [str(one) for one in controls] == ["reset:1", "reset:4", "reset:16", "zero"]
    assert remarks == []
    controls, remarks = controls_for(random_wuneng(num_hidden_layers=1), parse_controls("all"), 2)
    assert Control("layers") not in controls
    assert remarks == [
        "layers is left out: only one layer has state heads, so there is no other layer's state."
    ]
    for asked in ("all", "heads"):
        with pytest.raises(ModelError, match="no heads of this package's kind"):
            controls_for(random_llama(), parse_controls(asked), 2)
    with pytest.raises(InputError, match="Did you mean 'heads'"):
        parse_controls("head")


def metric(right: list[float], wrong: list[float], *, higher: bool = True) -> Any:
    sides = [
        TaskOutcomes(
            "t",
            [str(n) for n in range(len(values))],
            {"loss": MetricOutcomes("ratio", np.array(values), higher_is_better=higher)},
        )
        for values in (right, wrong)
    ]
    return compare(sides[:1], sides[1:])[0].metrics[0]


def test_no_difference_has_no_sign() -> None:
    other = metric([0.5, 0.5], [0.5, 0.5]).the_other_way_round()
    assert f"{other.difference.difference:+.1f}" == "+0.0"
    assert [f"{end:+.1f}" for end in other.difference.interval] == ["+0.0", "+0.0"]
    turned = metric([0.1, 0.9], [0.4, 0.3])
    back = turned.the_other_way_round().the_other_way_round()
    assert back == turned


def test_whose_gain_it_is() -> None:
    draw = np.random.default_rng(0)
    good = list(1 + draw.random(60) / 10)
    poor = [value - 0.5 for value in good]
    found = attribute("t", [("donor", metric(good, poor)), ("permute", metric(good, poor))])
    assert found is not None
    assert found.verdict == "state"
    assert found.sentence.startswith("t, loss: the right state beats a wrong one (donor +0.5000, ")
    same = list(draw.permutation(good))
    found = attribute("t", [("donor", metric(good, poor)), ("permute", metric(good, same))])
    assert found is not None
    assert found.verdict == "not the state"
    assert "is not the state's" in found.sentence
    # of a loss, less is better
    lower = attribute("t", [("donor", metric(poor, good, higher=False))])
    assert lower is not None
    assert lower.verdict == "state"
    assert "donor +0.5000, 95 % interval +0.5" in lower.sentence
    worse = attribute("t", [("donor", metric(poor, good))])
    assert worse is not None
    assert worse.verdict == "not the state"
    alone = attribute("t", [("donor", metric([0.3], [0.2]))])
    assert alone is not None
    assert alone.verdict == "unknown"
    assert "too few items" in alone.sentence
    assert attribute("t", []) is None
