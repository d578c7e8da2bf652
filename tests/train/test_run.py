"""Whole recipes in one process: what a run leaves, what is skipped, which run is continued."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.train.tiny import Watcher, fill
from wuneng.errors import DamagedError, DiskError, InputError, RecipeError, RunError
from wuneng.recipe import Recipe, dump_recipe, load_recipe
from wuneng.records import RunDirectory, find_model, lock, read_jsonl
from wuneng.train import Results, arm_run, checkpoint, loop, run
from wuneng.train.resume import choose_run, differences

RECIPE: dict[str, Any] = {
    "name": "small",
    "model": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "arms": ["wuneng", "mha"],
    "data": {"kind": "synthetic", "tasks": [{"task": "state_tracking", "group": "parity"}]},
    "training": {
        "steps": 6,
        "sequence_length": 16,
        "batch_size": 4,
        "warmup_steps": 2,
        "log_every": 1,
        "validate_every": 3,
        "checkpoint_every": 2,
        "num_threads": 1,
    },
    "evaluation": {"length_multiples": [1, 2], "examples": 8},
    "device": "cpu",
}


def recipe(place: Path, *changes: str) -> Recipe:
    path = place / "small.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return load_recipe(path, changes)


def train(place: Path, *changes: str, **options: Any) -> tuple[Results, Watcher]:
    watcher = Watcher()
    results = run(recipe(place, *changes), display=watcher, runs_root=place / "runs", **options)
    return results, watcher


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return train(tmp_path_factory.mktemp("finished"))[0]


def test_a_run_leaves_what_the_layout_promises(finished: Results) -> None:
    place = finished.directory
    assert (place.parent / "latest").resolve() == place.resolve()
    assert json.loads((place / "environment.json").read_text())["packages"]["torch"]
    results = json.loads((place / "results.json").read_text())
    assert results == finished.record
    assert results["schema"] == 1
    assert list(results["arms"]) == ["wuneng", "mha"]
    for arm, entry in results["arms"].items():
        assert len(read_jsonl(place / arm / "metrics.jsonl")) == 6
        assert {
            *("parameters", "added_percent", "training_flops", "tokens", "seconds"),
            *("tokens_per_second", "quality"),
        } <= entry.keys()
        names = {"parity/accuracy@16", "parity/accuracy@32", "parity/loss"}
        assert entry["quality"].keys() == names
        assert entry["tokens"] == 6 * 4 * 16
    assert results["arms"]["wuneng"]["added_percent"] > 0
    assert results["arms"]["mha"]["added_percent"] == 0
    sizes = [entry["parameters"] for entry in results["arms"].values()]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert finished.sentence.startswith("parity: ")


def test_the_saved_model_is_the_trained_one(finished: Results) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(find_model(finished.directory, "mha"))
    last = load_file(finished.directory / "mha" / "checkpoints" / "step-6" / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert parameters.keys() <= last.keys()
    assert all(torch.equal(parameters[name], last[name]) for name in parameters)


def test_the_resolved_recipe_repeats_the_run(finished: Results, tmp_path: Path) -> None:
    again = load_recipe(finished.directory / "recipe.yaml")
    results = run(again, tmp_path / "again", display=Watcher(), runs_root=tmp_path)
    for arm in ("wuneng", "mha"):
        one = read_jsonl(finished.directory / arm / "metrics.jsonl")
        two = read_jsonl(results.directory / arm / "metrics.jsonl")
        assert [row["loss"] for row in one] == [row["loss"] for row in two]
        assert results.record["arms"][arm]["quality"] == finished.record["arms"][arm]["quality"]


def test_threads_and_algorithms_are_as_before_a_run(finished: Results) -> None:
    assert not torch.are_deterministic_algorithms_enabled()


class Stopped(BaseException):
    pass


def stop_in(arm: str, step: int) -> Watcher:
    def at_step(progress: Any) -> None:
        if (progress.arm, progress.step) == (arm, step):
            raise Stopped

    return Watcher(at_step)


def test_a_finished_arm_is_skipped_and_results_survive(tmp_path: Path, finished: Results) -> None:
    with pytest.raises(Stopped):
        run(recipe(tmp_path), display=stop_in("mha", 5), runs_root=tmp_path / "runs")
    place = tmp_path / "runs" / "small"
    assert (place / "wuneng" / "result.json").exists()
    assert not (place / "results.json").exists()
    results, watcher = train(tmp_path)
    assert results.directory == place
    assert {progress.arm for progress in watcher.steps} == {"mha"}
    assert [progress.step for progress in watcher.steps] == [5, 6]
    assert any("wuneng (seed 0): finished before, skipped" in note for note in watcher.notes)
    for arm in ("wuneng", "mha"):
        entry, expected = results.record["arms"][arm], finished.record["arms"][arm]
        assert entry["quality"] == expected["quality"]
    environment = json.loads((place / "environment.json").read_text())
    assert len(environment["resumed"]) == 1


def test_stopped_while_scoring_the_arm_is_scored_again(
    tmp_path: Path, finished: Results, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any, **named: Any) -> None:
        raise Stopped

    monkeypatch.setattr(arm_run, "measure", stop)
    with pytest.raises(Stopped):
        train(tmp_path)
    monkeypatch.undo()
    results, watcher = train(tmp_path)
    assert [p.step for p in watcher.steps if p.arm == "wuneng"] == []
    expected = finished.record["arms"]["wuneng"]["quality"]
    assert results.record["arms"]["wuneng"]["quality"] == expected


def test_a_finished_run_is_not_continued_but_a_new_one_begun(tmp_path: Path) -> None:
    first, _ = train(tmp_path, "arms=[wuneng]")
    second, _ = train(tmp_path, "arms=[wuneng]")
    assert [first.directory.name, second.directory.name] == ["small", "small-2"]
    assert (tmp_path / "runs" / "latest").resolve() == second.directory.resolve()


def test_another_recipe_or_never_begins_a_new_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(Stopped):
        run(recipe(tmp_path), display=stop_in("wuneng", 3), runs_root=runs)
    same, stored = choose_run(recipe(tmp_path), None, "auto", runs)
    assert (same.path.name, stored is not None) == ("small", True)
    other, stored = choose_run(recipe(tmp_path, "training.steps=7"), None, "auto", runs)
    assert (other.path.name, stored) == ("small-2", None)
    never, stored = choose_run(recipe(tmp_path), None, "never", runs)
    assert (never.path.name, stored) == ("small-3", None)


def test_resume_a_named_run(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(recipe(tmp_path), display=stop_in("mha", 3), runs_root=tmp_path / "runs")
    place = tmp_path / "runs" / "small"
    with pytest.raises(InputError, match=r"training.learning_rate is 0.001 there, 0.5 here"):
        train(tmp_path, "training.learning_rate=0.5", resume=str(place))
    with pytest.raises(InputError, match="expected auto, never or a run directory"):
        train(tmp_path, resume=str(tmp_path / "absent"))
    with pytest.raises(InputError, match="different directories"):
        train(tmp_path, resume=str(place), out=tmp_path / "elsewhere")
    results, _ = train(tmp_path, "description=another one", resume=str(place))
    assert results.directory == place


def test_an_output_directory_in_use_is_left_alone(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="neither"):
        train(tmp_path, out=taken)
    with pytest.raises(InputError, match="it is a file"):
        train(tmp_path, out=taken / "thesis.tex")
    results, _ = train(tmp_path, "arms=[mha]", out=tmp_path / "mine")
    with pytest.raises(InputError, match="holds a run already"):
        train(tmp_path, "arms=[mha]", out=results.directory, resume="never")
    with pytest.raises(InputError, match="another recipe"):
        train(tmp_path, out=results.directory)
    again, watcher = train(tmp_path, "arms=[mha]", out=results.directory)
    assert again.record == results.record
    assert watcher.steps == []


def test_what_the_machine_decides_is_not_a_difference(tmp_path: Path) -> None:
    free = recipe(tmp_path, "training.num_threads=null", "device=auto")
    settled = recipe(tmp_path, "training.num_threads=3", "device=cpu")
    assert differences(settled, free) == []
    assert differences(settled, recipe(tmp_path)) == ["training.num_threads is 3 there, 1 here"]
    renamed = recipe(tmp_path, "name=other", "description=words", "loggers=[wandb]")
    assert differences(recipe(tmp_path), renamed) == []


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    with lock.locked(place):
        assert lock.is_locked(place)
        with pytest.raises(RunError, match="another process"):
            train(tmp_path, out=place)
    assert not lock.is_locked(place)


def test_several_seeds_are_averaged_and_kept_apart(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "seed=[3,4]", "training.steps=3")
    entry = results.record["arms"]["wuneng"]
    assert entry["seeds"] == [3, 4]
    losses = [part["quality"]["parity/loss"] for part in entry["per_seed"]]
    assert losses[0] != losses[1]
    assert entry["quality"]["parity/loss"] == pytest.approx(sum(losses) / 2)
    spread = abs(losses[0] - losses[1]) / 2**0.5
    assert entry["quality_std"]["parity/loss"] == pytest.approx(spread)
    assert (results.directory / "mha" / "seed-4" / "model" / "config.json").exists()
    rows = read_jsonl(results.directory / "mha" / "seed-4" / "metrics.jsonl")
    assert {row["seed"] for row in rows} == {4}
    assert "means over 2 seeds" in results.sentence


def test_arms_are_paired_by_seed(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "seed=[3,4,5]", "training.steps=3")
    arms, name = results.record["arms"], "parity/accuracy@16"
    [pair] = [p for p in results.record["paired"] if p["figure"] == name]
    ours, theirs = (
        [seed["quality"][name] for seed in arms[arm]["per_seed"]] for arm in pair["arms"]
    )
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    assert pair["seeds"] == 3
    assert pair["difference"] == pytest.approx(sum(apart) / 3)
    half = 4.302653 * statistics.stdev(apart) / math.sqrt(3)  # Student's t, two degrees of freedom
    expected = [pair["difference"] - half, pair["difference"] + half]
    assert pair["interval"] == pytest.approx(expected, abs=1e-6)
    assert results.paired is not None
    assert results.paired.caption == "paired over the same 3 seeds"
    shown = results.paired.rows[0][1]
    assert str(shown).startswith(f"{pair['difference']:+.3f} (")


def test_arms_read_the_same_batches_and_start_from_the_same_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    original = loop.take_step

    def recording(*arguments: Any, **named: Any) -> Any:
        seen.setdefault(named["arm"], []).append(arguments[2].input_ids)
        return original(*arguments, **named)

    monkeypatch.setattr(loop, "take_step", recording)
    train(tmp_path, "arms=[wuneng,mha,mha-shift]")
    batches = list(seen.values())
    assert [len(taken) for taken in batches] == [6, 6, 6]
    for other in batches[1:]:
        assert all(torch.equal(a, b) for a, b in zip(batches[0], other, strict=True))
    assert not torch.equal(batches[0][0], batches[0][1])


def test_an_arm_may_have_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    results, watcher = train(
        tmp_path, "arms.mha.training.learning_rate=0.5", "training.schedule=constant"
    )
    rates = {p.arm: p.learning_rate for p in watcher.steps if p.step == 6}
    assert rates == {"wuneng": 0.001, "mha": 0.5}
    assert results.record["arms"]["mha"]["learning_rate"] == 0.5


def test_a_later_arms_fault_is_found_before_the_first_trains(tmp_path: Path) -> None:
    arms = (
        "arms={wuneng: , wide: {model: {num_state_heads: 0, hidden_size: 256}, match: parameters}}"
    )
    with pytest.raises(RecipeError, match=r"arms\.wide: "):
        train(tmp_path, arms)
    assert not list((tmp_path / "runs").iterdir())


def test_a_recipe_that_the_user_wrote_survives_its_faults(tmp_path: Path) -> None:
    place = tmp_path / "exp"
    place.mkdir()
    written = place / "recipe.yaml"
    text = dump_recipe(recipe(tmp_path, "arms.mha.model.hidden_size=512"))
    written.write_text(text)
    with pytest.raises(RecipeError, match=r"arms\.mha: .*feed-forward width"):
        run(load_recipe(written), out=place, display=Watcher(), runs_root=tmp_path / "runs")
    assert written.read_text() == text


def test_an_altered_recipe_of_a_finished_run_is_not_believed(tmp_path: Path) -> None:
    results, _ = train(tmp_path, "arms=[mha]")
    stored = results.directory / "recipe.yaml"
    sealed = (results.directory / "checksums.json").read_bytes()
    stored.write_text(stored.read_text().replace("learning_rate: 0.001", "learning_rate: 0.01"))
    altered = load_recipe(stored)
    assert altered.training.learning_rate == 0.01
    with pytest.raises(DamagedError, match=r"recipe\.yaml"):
        run(altered, out=results.directory, display=Watcher(), runs_root=tmp_path / "runs")
    assert (results.directory / "checksums.json").read_bytes() == sealed


def test_an_arm_that_cannot_be_matched_is_the_recipes_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"arms\.mha: .*feed-forward width"):
        train(tmp_path, "arms.mha.model.hidden_size=512")


def test_a_disk_that_fills_between_arms_keeps_the_finished_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    results = tmp_path / "runs" / "small" / "wuneng" / "result.json"
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=10 if results.exists() else 10**9)
    )
    with pytest.raises(DiskError, match=r"mha/checkpoints/step-2: the disk is full"):
        train(tmp_path)
    monkeypatch.undo()
    continued, watcher = train(tmp_path)
    assert {p.arm for p in watcher.steps} == {"mha"}
    assert continued.directory == RunDirectory(tmp_path / "runs" / "small").path


def test_a_really_full_disk_loses_no_checkpoint(
    small_disk: Path, tmp_path: Path, finished: Results
) -> None:
    ballast = small_disk / "ballast"

    def at_step(progress: Any) -> None:
        if (progress.arm, progress.step) == ("mha", 3):
            fill(ballast)

    out = small_disk / "run"
    with pytest.raises(DiskError, match="the disk is full"):
        run(recipe(tmp_path), out, display=Watcher(at_step), runs_root=tmp_path / "runs")
    assert (out / "wuneng" / "result.json").exists()
    assert checkpoint.verify(out / "mha" / "checkpoints" / "step-2").state.step == 2
    ballast.unlink()
    results, watcher = train(tmp_path, out=out)
    assert [progress.step for progress in watcher.steps] == [3, 4, 5, 6]
    for arm in ("wuneng", "mha"):
        assert results.record["arms"][arm]["quality"] == finished.record["arms"][arm]["quality"]
