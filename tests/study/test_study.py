"""A study from its plan to its conclusion: hashed first, resumable, told in full."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.train.small_run import RECIPE
from tests.train.tiny import Watcher
from wuneng.errors import RecipeError
from wuneng.recipe import WrittenRecipe, load_recipe, read_written
from wuneng.records import RunDirectory, find_model, read_json, read_jsonl, verify
from wuneng.statistics import (
    PairedDifference,
    conclude,
    equivalence,
    holm,
    minimum_detectable_effect,
    paired_by_seed,
    tokens_saved,
)
from wuneng.study import plan_study, run_study
from wuneng.study.planning import recorded_plan, variant_of
from wuneng.study.rungs import rungs_of
from wuneng.study.tuning import Tuned, extended

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = "training.learning_rate"
ARMS = ("wuneng", "mha")
STUDY: dict[str, Any] = {
    "primary": "parity/loss",
    "tune": {"training.learning_rate": [1e-3, 4e-3, 2e-3]},
    "seeds": 2,
    "ladder": {"sizes": ["12k", "20k"], "tokens_per_parameter": [0.01]},
}


class Stopped(BaseException):
    pass


def written(place: Path, *changes: str, **study: Any) -> WrittenRecipe:
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "seed": 3, "study": {**STUDY, **study}}))
    return read_written(path, ["training.validate_every=0", *changes])


def study(given: WrittenRecipe, place: Path, at_step: Any = None, **options: Any) -> Any:
    watcher = Watcher(at_step)
    found = run_study(given, display=watcher, runs_root=place / "runs", **options)
    return found, watcher


def test_a_study_that_is_stopped_goes_on_to_the_same_conclusion(tmp_path: Path) -> None:
    given = written(tmp_path)
    whole, _ = study(given, tmp_path / "whole")

    def stop_while_comparing(progress: Any) -> None:
        if progress.arm == "mha" and progress.seed == 5:
            raise Stopped

    with pytest.raises(Stopped):
        study(given, tmp_path, stop_while_comparing)
    plan = read_json(tmp_path / "runs" / "small" / "study-plan.json")
    found, watcher = study(given, tmp_path)
    assert found.directory == tmp_path / "runs" / "small"
    assert {progress.seed for progress in watcher.steps} <= {4, 5}, "tuning was finished before"
    record = found.record
    assert record["plan"] == {"sha256": plan["sha256"], "changes": []}
    assert plan["sha256"][:12] in found.sentence
    costs = ("seconds", "tokens_per_second")
    for name in ("rungs", "summary"):
        assert _without(record[name], costs) == _without(whole.record[name], costs)
    verify(found.directory)


def _without(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return [_without(v, names) for v in value] if isinstance(value, list) else value


def test_every_arm_is_tuned_alike_and_compared_at_its_own_best(tmp_path: Path) -> None:
    found, _ = study(written(tmp_path, "training.validate_every=1"), tmp_path)
    record = found.record
    assert [rung["rung"] for rung in record["rungs"]] == ["12k-x0.01", "20k-x0.01"]
    for rung in record["rungs"]:
        tried = rung["tuning"]["tried"]
        grid = rung["tuning"]["grid"]["training.learning_rate"]
        assert len(tried) == len(grid) >= 3
        compared = found.directory / rung["directory"]
        recipe = load_recipe(compared / "recipe.yaml")
        assert recipe.seeds == [4, 5], "fresh seeds"
        for arm, entry in rung["arms"].items():
            figures = {one["values"][RATE]: one["figures"][arm] for one in tried}
            best = min(figures, key=figures.__getitem__)
            assert entry["tuned"] == {"training.learning_rate": best}
            assert recipe.arm_training(arm).learning_rate == best
            own = [
                read_json(compared / arm / f"seed-{seed}" / "result.json")["quality"]["parity/loss"]
                for seed in (4, 5)
            ]
            assert entry["per_seed"] == own
            assert entry["mean"] == pytest.approx(sum(own) / 2)
            assert entry["cache_bytes"] > 0
            run = read_json(compared / "results.json")["arms"][arm]
            for name in ("cache_bytes", "state_bytes"):
                assert run[name] == entry[name], "in the rung's own page too"
            assert bool(entry["state_bytes"]) == (arm == "wuneng")
        [paired] = [
            one
            for one in read_json(compared / "results.json")["paired"]
            if one["figure"] == "parity/loss"
        ]
        [difference] = rung["differences"]
        assert paired["difference"] == difference["difference"], (
            "what decides is in the rung's page"
        )
        ours, theirs = (rung["arms"][arm]["mean"] for arm in difference["arms"])
        assert difference["difference"] == pytest.approx(ours - theirs)
        pair = paired_by_seed(*(np.array(rung["arms"][arm]["per_seed"]) for arm in ARMS))
        assert difference["interval"] == pytest.approx([pair.low, pair.high])
        margin = 0.005 * rung["arms"]["wuneng"]["mean"]
        assert difference["equivalence"]["p"] == equivalence(pair, margin).p
        expected = conclude(pair, margin, higher_is_better=False)
        assert difference["conclusion"] == expected.value
        saved = tokens_saved(*(validation_curves(compared / arm) for arm in ARMS))
        assert saved is not None
        assert difference["tokens_saved"]["saved"] == saved.saved
        exploratory = difference["exploratory"]
        assert list(exploratory) == ["parity/accuracy@16", "parity/accuracy@32"]
        assert [one["p_holm"] for one in exploratory.values()] == holm(
            [one["p"] for one in exploratory.values()]
        )
    last = found.directory / record["rungs"][-1]["directory"]
    assert find_model(found.directory, arm="mha") == last / "mha" / "seed-4" / "model"
    [table] = found.tables
    assert len(table.rows) == 4


def test_a_study_of_text_tells_what_holds_for_fresh_rows_too(tmp_path: Path) -> None:
    text = "".join(f"{n} and {n * n % 97} are {n + n * n % 97}. " for n in range(150))
    (tmp_path / "text.txt").write_text(text)
    data = f"data={{kind: text, train: {tmp_path / 'text.txt'}, tokenizer: bytes}}"
    given = written(tmp_path, data, primary="text/loss", tune={}, seeds=2, ladder=None)
    record = study(given, tmp_path)[0].record
    [rung] = record["rungs"]
    [found] = rung["differences"]
    place = tmp_path / "runs" / "small" / rung["directory"]
    tables = []
    for arm in ARMS:
        files = [place / arm / f"seed-{seed}" / "rows.json" for seed in rung["arms"][arm]["seeds"]]
        [rows] = zip(*(read_json(file)["rows"]["text"].values() for file in files), strict=True)
        nats, tokens = (np.array([one[key] for one in rows]) for key in ("nats", "tokens"))
        tables.append((nats - nats.sum() / tokens.sum() * tokens) / tokens.mean())
    apart = tables[0] - tables[1]
    of_seeds = apart.shape[1] * apart.mean(axis=1).var(ddof=1)
    of_rows = apart.shape[0] * apart.mean(axis=0).var(ddof=1)
    rest = apart - apart.mean(axis=1, keepdims=True) - apart.mean(axis=0) + apart.mean()
    of_rest = (rest**2).sum() / ((apart.shape[0] - 1) * (apart.shape[1] - 1))
    crossed = found["crossed"]
    share = of_seeds / (of_seeds + max(0.0, of_rows - of_rest))
    assert crossed["share_of_seeds"] == pytest.approx(share)
    assert crossed["rows"] == apart.shape[1] > 2
    low, high = crossed["interval"]
    assert (low + high) / 2 == pytest.approx(found["difference"])
    assert low < found["difference"] < high
    whole = PairedDifference(
        *(found["difference"], crossed["standard_error"], low, high, crossed["p"]),
        "crossed-bootstrap",
        freedom=crossed["freedom"],
    )
    margin = found["equivalence"]["margin"]
    if found["conclusion"] != "undecided":
        assert crossed["conclusion"] == conclude(whole, margin, higher_is_better=False).value
    assert f"over fresh rows too: {low:+.4f} to {high:+.4f}" in record["summary"]


def test_rows_of_a_task_are_crossed_too(tmp_path: Path) -> None:
    """They are the same for every seed."""
    given = written(tmp_path, tune={}, seeds=2, ladder=None)
    [rung] = study(given, tmp_path)[0].record["rungs"]
    [found] = rung["differences"]
    assert found["crossed"]["rows"] > 2
    low, high = found["crossed"]["interval"]
    assert low < found["difference"] < high


def validation_curves(arm: Path) -> dict[int, list[tuple[float, float]]]:
    return {
        seed: [
            (row["tokens"], row["validation"]["parity/loss"])
            for row in read_jsonl(arm / f"seed-{seed}" / "metrics.jsonl")
        ]
        for seed in (4, 5)
    }


def test_the_plan_is_written_and_hashed_before_the_first_step(tmp_path: Path) -> None:
    seen = []

    def at_step(progress: Any) -> None:
        path = tmp_path / "runs" / "small" / "study-plan.json"
        seen.append(read_json(path)["sha256"])
        raise Stopped

    with pytest.raises(Stopped):
        study(written(tmp_path), tmp_path, at_step)
    assert len(seen[0]) == 64


def test_a_plan_that_was_changed_is_named(tmp_path: Path) -> None:
    given = written(tmp_path, tune={}, seeds=2, ladder=None)
    with pytest.raises(Stopped):
        study(given, tmp_path, lambda progress: _stop())
    directory = tmp_path / "runs" / "small"
    path = directory / "study-plan.json"
    plan = read_json(path)
    plan["plan"]["smallest_effect"] = 0.1
    plan["code"]["wuneng"] = "0.0.1"
    path.write_text(json.dumps(plan))
    found, watcher = study(given, tmp_path)
    changes = found.record["plan"]["changes"]
    *rest, code = changes
    assert rest == [
        "study-plan.json was edited after it was written",
        "smallest_effect: 0.1 was planned, 0.005 is carried out",
    ]
    assert code.startswith("code: 0.0.1")
    assert f" when it was planned, {version('wuneng')}" in code
    assert all(any(change in warning for warning in watcher.warnings) for change in changes)
    assert "Changed after the plan was written: smallest_effect" in found.sentence


def test_a_finished_study_was_not_carried_out_by_the_code_of_today(tmp_path: Path) -> None:
    given = written(tmp_path, tune={}, seeds=2, ladder=None)
    study(given, tmp_path)
    path = tmp_path / "runs" / "small" / "study-plan.json"
    plan = read_json(path)
    path.write_text(json.dumps(plan | {"code": {"wuneng": "0.0.1"}}))
    directory = RunDirectory(path.parent)
    assert recorded_plan(directory, plan_study(given))["changes"] == []
    directory.results.unlink()
    (change,) = recorded_plan(directory, plan_study(given))["changes"]
    assert change.startswith("code: 0.0.1 when it was planned, ")


def test_a_plan_of_an_earlier_version_has_no_code_that_could_change(tmp_path: Path) -> None:
    given = written(tmp_path, tune={}, seeds=2, ladder=None)
    with pytest.raises(Stopped):
        study(given, tmp_path, lambda progress: _stop())
    path = tmp_path / "runs" / "small" / "study-plan.json"
    plan = read_json(path)
    del plan["code"]
    path.write_text(json.dumps(plan))
    found, _ = study(given, tmp_path)
    assert found.record["plan"]["changes"] == []


def _stop() -> None:
    raise Stopped


def test_a_rung_has_the_parameters_that_were_asked_for(tmp_path: Path) -> None:
    given = written(tmp_path, ladder={"sizes": ["0.1M", "1M"], "tokens_per_parameter": [2, 4]})
    plan = plan_study(given)
    for rung in plan.rungs:
        facts = plan.runs[rung.name].arms
        for arm in facts.values():
            assert arm.facts.parameters == pytest.approx(rung.size, rel=0.02)
        tokens = plan.runs[rung.name].training.total_tokens
        wanted = rung.tokens_per_parameter * facts["wuneng"].facts.parameters
        assert wanted <= tokens < wanted + plan.runs[rung.name].training.tokens_per_step
    for run in plan.runs.values():
        config = run.arms["wuneng"].config
        assert config.head_dim == 16
        assert abs(config.num_hidden_layers - config.hidden_size / 32) <= 0.5, "as deep as wide"
    flops = plan_study(written(tmp_path, match="flops"))
    for run in flops.runs.values():
        ours, theirs = (arm.facts.flops_per_token for arm in run.arms.values())
        assert theirs == pytest.approx(ours, rel=0.05)


def test_tuning_and_comparing_are_scored_on_different_text(tmp_path: Path) -> None:
    given = written(tmp_path, "data={kind: text, train: stdlib}", primary="text/loss")
    [rung, _] = rungs_of(given)
    parts = []
    for part in ("tuning", "final"):
        data = variant_of(given, rung, {}, part=part).data
        assert data.kind == "text"
        parts.append(data.validation_part)
    assert parts == ["tuning", "final"]


def test_what_can_be_detected_is_what_the_statistics_say(tmp_path: Path) -> None:
    plan = plan_study(written(tmp_path, seeds=5, seed_spread="1%"))
    assert plan.detectable == minimum_detectable_effect(0.01 * 2**0.5, 5)
    assert plan.record()["minimum_detectable_effect"] == pytest.approx(plan.detectable, abs=1e-6)


def test_a_best_value_at_the_edge_extends_the_grid() -> None:
    path = "training.learning_rate"
    found = Tuned({path: [1e-3, 2e-3]}, best={"a": {path: 2e-3}, "b": {path: 2e-3}})
    assert extended(found) == {path: [1e-3, 2e-3, 4e-3]}
    found.best["b"] = {path: 1e-3}
    assert extended(found) == {path: [1e-3, 2e-3, 4e-3, 5e-4]}
    inside = Tuned({path: [1e-3, 2e-3, 4e-3]}, best={"a": {path: 2e-3}})
    assert extended(inside) == inside.grid
    counts = Tuned({"model.decay_rank": [1, 2]}, best={"a": {"model.decay_rank": 1}})
    assert extended(counts) == counts.grid, "there is no rank below one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "study.primary=parity/los",
            r"expected one of .*Did you mean 'parity/loss'",
        ),
        ("study.tune={training.steps: [1, 2]}", r"study.tune.training.steps: expected a field of"),
        ("study.tune={training.clip: [1]}", r"study.tune.training.clip: expected at least 2"),
        ("study.tune={training.clip: [1, 1]}", r"study.tune.training.clip: expected different"),
        ("study.smallest_effect=50", r"study.smallest_effect: expected a share between 0 and 1"),
        ("study.ladder.sizes=[big]", r"study.ladder.sizes.0: expected a number of parameters"),
        ("seed=[1,2]", "study: expected one seed"),
        ("sweep={training.clip: [1, 2]}", "sweep: expected none beside study"),
    ],
)
def test_bad_studies_are_refused_by_name(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_study(written(tmp_path, change))


def test_the_shipped_study_is_planned() -> None:
    given = read_written(REPOSITORY / "recipes" / "study-bytes.yaml")
    plan = plan_study(given)
    assert len(plan.rungs) == 2
    assert len(plan.seeds) == 5
    assert not set(plan.seeds) & set(plan.tuning_seeds)
    for rung in plan.rungs:
        arms = plan.runs[rung.name].arms
        assert list(arms) == ["wuneng", "mha", "mha-shift", "middle", "state-only"]
        counts = [arm.facts.parameters for arm in arms.values()]
        assert max(counts) / min(counts) < 1.01
