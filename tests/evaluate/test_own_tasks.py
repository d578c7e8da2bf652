"""After `train`, its next commands: a run is scored on its own data, whichever arm is meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from wuneng.errors import TaskError
from wuneng.evaluate.choice import choose_models, default_tasks
from wuneng.evaluate.synthetic import open_synthetic
from wuneng.records import RunDirectory, arm_roles

RECIPE = """
name: quick
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng, mha]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2, queries: 4, keys: 6, values: 6},
                                {task: state_tracking, group: parity}]}
training: {steps: 20, sequence_length: 16, batch_size: 8, learning_rate: 1e-2}
evaluation: {length_multiples: [1, 4], examples: 17}
"""


def invoke(*arguments: object) -> Result:
    from wuneng_cli.main import app

    return CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a small quickstart has run."""
    place = tmp_path_factory.mktemp("quick")
    (place / "quick.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        result = invoke("train", "quick.yaml")
    assert result.exit_code == 0, result.output
    (place / "printed").write_text(result.stdout)
    return place


@pytest.fixture
def quick(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place / "runs" / "quick"


def test_what_train_suggests_runs(quick: Path) -> None:
    lines = (quick.parents[1] / "printed").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Next: wuneng "))
    commands = [line.removeprefix("Next:").split() for line in lines[start:]]
    assert [c[1:] for c in commands] == [
        ["eval", "runs/quick"],
        ["eval", "runs/quick", "--state", "zero"],
    ]
    for command in commands:
        result = invoke(*command[1:])
        assert result.exit_code == 0, result.output


def test_eval_says_what_train_said(quick: Path) -> None:
    results = json.loads((quick / "results.json").read_text())
    result = invoke("eval")
    assert result.exit_code == 0, result.output
    found = json.loads((quick / "eval.json").read_text())["tasks"]
    assert list(found) == ["recall@16", "recall@64", "parity@16", "parity@64"]
    for task, entry in found.items():
        name = task.replace("@", "/accuracy@")
        metric = entry["metrics"]["accuracy"]
        assert entry["n"] == 17
        for side, arm in (("model", "wuneng"), ("baseline", "mha")):
            assert metric[side] == pytest.approx(results["arms"][arm]["quality"][name])
            error = results["arms"][arm]["standard_error"][name]
            assert metric[f"{side}_stderr"] == pytest.approx(error)
        [pair] = [p for p in results["paired"] if p["figure"] == name]
        assert metric["difference"] == pytest.approx(pair["difference"])
        assert metric["difference_stderr"] == pytest.approx(pair["standard_error"])
        assert metric["ci95"] == pytest.approx(pair["interval"])
        assert metric["p"] == pytest.approx(pair["p"])
    loss = found["parity@16"]["metrics"]["loss"]
    assert loss["model"] == pytest.approx(results["arms"]["wuneng"]["quality"]["parity/loss"])
    assert not loss["higher_is_better"]
    assert "loss" not in found["parity@64"]["metrics"]


@pytest.mark.parametrize("control", ["zero", "permute"])
def test_the_state_controls_act(quick: Path, control: str) -> None:
    """17 rows of 64 tokens come in batches of 2: the last one would be alone."""
    result = invoke("eval", "--state", control)
    assert result.exit_code == 0, result.output
    found = json.loads((quick / f"eval-state-{control}.json").read_text())
    results = json.loads((quick / "results.json").read_text())
    quality = results["arms"]["wuneng"]["quality"]
    entry = found["tasks"]["parity@64"]
    assert entry["n"] == 17
    kept = entry["metrics"]["accuracy"]["baseline"]
    assert kept == pytest.approx(quality["parity/accuracy@64"])
    losses = found["tasks"]["parity@16"]["metrics"]["loss"]
    assert abs(losses["model"] - losses["baseline"]) > 1e-4


def test_all_controls_on_the_runs_own_tasks(quick: Path) -> None:
    """One layer; 17 rows of 64 tokens, the last of which needs company."""
    result = invoke("eval", "--controls", "all")
    assert result.exit_code == 0, result.output
    results = json.loads((quick / "results.json").read_text())
    record = json.loads((quick / "controls.json").read_text())
    assert list(record["tasks"]) == ["recall@16", "recall@64", "parity@16", "parity@64"]
    figure = record["tasks"]["parity@64"]["metrics"]["accuracy"]
    quality = results["arms"]["wuneng"]["quality"]
    assert figure["value"] == pytest.approx(quality["parity/accuracy@64"])
    curves = [f"{name}:{length}" for name in ("frozen", "reset") for length in (1, 4, 16)]
    expected = ["zero", "permute", "donor", *curves, "attention"]
    assert list(figure["controls"]) == expected
    assert "layers is left out: only one layer has state heads" in result.stdout
    # what the first 16 tokens are read with is the same
    short = record["tasks"]["parity@16"]["metrics"]["loss"]
    for name in ("frozen:16", "reset:16"):
        assert abs(short["controls"][name]["difference"]) < 1e-6
        assert abs(short["controls"][name.replace("16", "4")]["difference"]) > 1e-5
    assert [one["verdict"] for one in record["attribution"]] == ["not the state"] * 4
    assert "so what the model gains over one without state heads is not the state's" in (
        result.stdout
    )


def test_the_heads_are_looked_at_over_a_held_out_row(quick: Path) -> None:
    record = {}
    for task in ("recall", "parity"):
        result = invoke("inspect", "--task", task, "--json")
        assert result.exit_code == 0, result.output
        record[task] = json.loads(result.stdout)
        assert record[task]["text"]["source"] == f"a held-out row of {task}"
        assert record[task]["text"]["tokens"] == 16
    assert record["recall"]["text"]["spelled"] != record["parity"]["text"]["spelled"]
    first = json.loads(invoke("inspect", "--json").stdout)
    assert first["text"] == record["recall"]["text"]
    refused = invoke("inspect", "--task", "party")
    assert refused.exit_code == 2
    assert "--task: expected recall, parity, got 'party'. Did you mean 'parity'?" in refused.stderr


@pytest.mark.parametrize(
    "option",
    [("--data-dir", "."), ("--include-path", "none"), ("--num-fewshot", "2"), ("--lengths", "64")],
    ids=lambda option: option[0],
)
def test_options_of_other_tasks_are_refused(quick: Path, option: tuple[str, str]) -> None:
    result = invoke("eval", "--tasks", "synthetic", *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for tasks of lm-evaluation-harness" in result.stderr
    assert "synthetic alone" in result.stderr


def test_an_arm_by_name_and_a_limit(quick: Path) -> None:
    result = invoke("eval", "--arm", "mha", "--limit", 5, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["models"]["model"]["label"] == "quick/mha"
    assert record["models"]["baseline"] is None
    assert record["tasks"]["recall@16"]["n"] == 5
    refused = invoke("eval", "--arm", "mah")
    assert refused.exit_code == 2
    assert "Did you mean 'mha'?" in refused.stderr


@pytest.mark.parametrize(
    "line",
    [
        ("eval", "--tasks", "arc"),
        ("eval", "--tasks", "validation"),
        ("generate", "--prompt", "It was"),
    ],
)
def test_what_needs_text_says_what_to_do(quick: Path, line: tuple[str, ...]) -> None:
    result = invoke(*line)
    assert result.exit_code == 2, result.output
    said = " ".join(result.stderr.split())
    assert "was trained on synthetic tasks and reads token ids, not text" in said
    assert f"`wuneng eval {quick}`" in said
    assert "wuneng train recipes/python-bytes.yaml" in said


def test_a_text_run_is_scored_on_its_held_out_text(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(text_run.parents[1])
    result = invoke("eval")
    assert result.exit_code == 0, result.output
    assert list(json.loads((text_run / "eval.json").read_text())["tasks"]) == ["validation"]
    refused = invoke("eval", "--tasks", "synthetic")
    assert refused.exit_code == 2
    assert "was trained on text; --tasks validation scores" in " ".join(refused.stderr.split())


def test_a_model_of_its_own_has_no_default_tasks(llama_directory: Path) -> None:
    with pytest.raises(TaskError, match=r"belongs to no run, .* as in --tasks arc,hellaswag"):
        default_tasks(llama_directory)
    with pytest.raises(TaskError, match="neither MODEL nor the baseline belongs to a run"):
        open_synthetic(None, limit=None)


def test_another_model_does_not_know_these_tokens(quick: Path, tiny: Callable[..., Path]) -> None:
    small = tiny("llama", tokenizer=False)
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    config = LlamaConfig(vocab_size=5, num_attention_heads=1, **sizes)
    LlamaForCausalLM(config).save_pretrained(small)
    result = invoke("eval", "--baseline", small)
    assert result.exit_code == 2
    assert "has 5 tokens, the tasks of quick need" in " ".join(result.stderr.split())


ARMS: dict[str, Any] = {
    "source": {"model": {"num_state_heads": 0}, "train": "none"},
    "lora": {"model": {"num_state_heads": 0}, "lora": {"rank": 4}},
    "wuneng": {"model": {}},
    "wide": {"model": {"num_state_heads": 0}},
}


@pytest.mark.parametrize(
    ("arms", "main", "baseline"),
    [
        (("source", "lora", "wuneng"), "wuneng", "source"),
        (("lora", "source"), "lora", "source"),
        (("source",), "source", None),
        (("wide", "wuneng"), "wuneng", "wide"),
        (("wuneng",), "wuneng", None),
    ],
)
def test_the_arm_that_is_meant(
    tmp_path: Path, arms: tuple[str, ...], main: str, baseline: str | None
) -> None:
    recipe = {"model": {"num_state_heads": 4}, "arms": {name: ARMS[name] for name in arms}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    roles = arm_roles(RunDirectory(tmp_path))
    assert (roles.main, roles.baseline) == (main, baseline)


def test_after_an_upgrade_the_trained_arm_is_taken_and_the_source_held_against_it(
    text_run: Path,
) -> None:
    recipe = yaml.safe_load((text_run / "recipe.yaml").read_text())
    recipe["arms"] = {"source": ARMS["source"], "wuneng": {}}
    (text_run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (text_run / "mha").rename(text_run / "source")
    model, baseline, remark = choose_models(None, None, runs_root=text_run.parent)
    assert baseline is not None
    assert (model.parent.name, baseline.parent.name) == ("wuneng", "source")
    assert remark == "compared with the run's arm source (--baseline changes that)"
    named, other, _ = choose_models(None, None, runs_root=text_run.parent, arm="source")
    assert (named.parent.name, other) == ("source", None)
