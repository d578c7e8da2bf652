"""Whole recipes in one process: what a run leaves, what is skipped, which run is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.small_run import Stopped, recipe, stop_in, train
from tests.train.tiny import Watcher, fill
from wuneng.errors import DiskError, InputError, RunError
from wuneng.recipe import load_recipe
from wuneng.records import find_model, lock, read_jsonl
from wuneng.study.memory import cache_sizes
from wuneng.train import Results, arm_run, checkpoint, run
from wuneng.train.resume import choose_run, differences


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
        kept = cache_sizes(find_model(place, arm), 16)
        assert {name: entry[name] for name in kept} == kept, "as counted, so in a model's cache"
        assert bool(entry["state_bytes"]) == (arm == "wuneng")
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
