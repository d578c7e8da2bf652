"""More steps for a finished run: equal, to the bit, to a run that was planned with as many."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.tiny import UNTIMED, Watcher
from wuneng.errors import InputError
from wuneng.recipe import load_recipe
from wuneng.records import read_json, read_jsonl
from wuneng.train import Results, run
from wuneng.train.schedule import learning_rate_at, steps_before_decay

RECIPE: dict[str, Any] = {
    "name": "longer",
    "model": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "attention_dropout": 0.1,
    },
    "arms": ["wuneng", "mha"],
    "data": {"kind": "text", "train": "text.txt", "tokenizer": "bytes"},
    "training": {
        "steps": 10,
        "sequence_length": 16,
        "batch_size": 2,
        "micro_batch_size": 1,
        "warmup_steps": 2,
        "schedule": "wsd",
        "decay_fraction": 0.3,
        "log_every": 2,
        "validate_every": 4,
        "checkpoint_every": 3,
        "keep_checkpoints": 1,
        "num_threads": 1,
    },
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"The {i}th line tells of {i * i} owls and {i % 7} bees.\n" for i in range(60)]
    Path("text.txt").write_text("".join(lines), encoding="utf-8")
    Path("longer.yaml").write_text(yaml.safe_dump(RECIPE), encoding="utf-8")


def train(out: str, steps: int, *changes: str, watcher: Watcher | None = None) -> Results:
    recipe = load_recipe(Path("longer.yaml"), [f"training.steps={steps}", *changes])
    return run(recipe, Path(out), display=watcher or Watcher())


def outcome(place: Path) -> dict[str, Any]:
    """All that must be as if planned; every second line of metrics is logged by both."""
    parts: dict[str, Any] = {"recipe": (place / "recipe.yaml").read_bytes()}
    for arm in RECIPE["arms"]:
        parts[f"{arm} weights"] = (place / arm / "model" / "model.safetensors").read_bytes()
        parts[f"{arm} rows"] = (place / arm / "rows.json").read_bytes()
        parts[f"{arm} metrics"] = [
            {k: v for k, v in row.items() if k not in UNTIMED}
            for row in read_jsonl(place / arm / "metrics.jsonl")
            if row["step"] % 2 == 0 or row["step"] == 1
        ]
        record = read_json(place / "results.json")["arms"][arm]
        parts[arm] = {k: record[k] for k in ("quality", "steps", "tokens", "best_validation")}
    return parts


@pytest.mark.parametrize("schedule", ["wsd", "constant"])
def test_an_extended_run_equals_a_planned_one(schedule: str) -> None:
    change = f"training.schedule={schedule}"
    train("extended", 10, change)
    steps = [path.name for path in sorted(Path("extended/mha/checkpoints").iterdir())]
    assert steps == (["step-10", "step-7"] if schedule == "wsd" else ["step-10"])
    watcher = Watcher()
    train("extended", 16, change, watcher=watcher)
    first = 8 if schedule == "wsd" else 11  # the decay of 3 steps comes again, later
    assert [p.step for p in watcher.steps if p.arm == "mha"] == list(range(first, 17))
    train("planned", 16, change)
    expected, found = outcome(Path("planned")), outcome(Path("extended"))
    for name, value in expected.items():
        assert found[name] == value, name
    train("extended", 21, change)  # and once more
    train("planned-too", 21, change)
    assert outcome(Path("extended")) == outcome(Path("planned-too"))


def test_an_extension_can_be_killed_and_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file that it removes or writes is a moment at which it may end."""
    train("planned", 14)
    expected = outcome(Path("planned"))
    for moment in (1, 3, 5, 8):
        place = f"killed-{moment}"
        train(place, 10)
        left = [moment]

        def stop(function: Any, left: list[int] = left) -> Any:
            def stopping(*arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return function(*arguments, **options)

            return stopping

        with monkeypatch.context() as patch:
            for owner, name in ((Path, "unlink"), (os, "rename"), (Path, "rename")):
                patch.setattr(owner, name, stop(getattr(owner, name)))
            try:
                train(place, 14)
            except KeyboardInterrupt:
                pass
            else:
                left[0] = -1
        train(place, 14)
        assert outcome(Path(place)) == expected, moment


def test_cosine_is_refused_by_name() -> None:
    train("run", 10, "training.schedule=cosine")
    before = outcome(Path("run"))
    with pytest.raises(InputError, match=r"arm 'wuneng' cannot be extended: .* cosine over all 10"):
        train("run", 16, "training.schedule=cosine")
    assert outcome(Path("run")) == before
    train("run", 10, "training.schedule=cosine")


def test_without_a_checkpoint_from_before_the_decay_it_is_refused() -> None:
    import shutil

    train("run", 10)
    shutil.rmtree("run/mha/checkpoints/step-7")
    with pytest.raises(InputError, match=r"arm 'mha' .* from before its decay, which began"):
        train("run", 16)
    train("run", 10)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training.steps=8", "training.steps is 10 there, 8 here"),
        ("training.batch_size=4", "training.batch_size is 2 there, 4 here"),
    ],
)
def test_other_changes_are_another_recipe(change: str, said: str) -> None:
    train("run", 10)
    with pytest.raises(InputError, match=said):
        train("run", 16 if "steps" not in change else 10, change)


def test_a_curriculum_is_refused() -> None:
    task = "{task: state_tracking, group: parity, curriculum: true}"
    changes = [f"data={{kind: synthetic, tasks: [{task}]}}", "evaluation={examples: 4}"]
    train("run", 4, *changes)
    with pytest.raises(InputError, match=r"'state_tracking' has a curriculum"):
        train("run", 6, *changes)


@pytest.mark.parametrize("total", [5, 10, 64, 1000])
@pytest.mark.parametrize("decay", [0.0, 0.1, 0.2, 0.5])
def test_the_plateau_is_where_longer_runs_agree(total: int, decay: float) -> None:
    recipe = load_recipe(
        Path("longer.yaml"), [f"training.steps={total}", f"training.decay_fraction={decay}"]
    )
    training = recipe.training
    agreed = steps_before_decay(total, training)
    for longer in (total + 1, 2 * total, 10 * total):
        rates = [learning_rate_at(step, longer, training) for step in range(agreed)]
        assert rates == [learning_rate_at(step, total, training) for step in range(agreed)]
    if agreed < total:
        assert learning_rate_at(agreed, total, training) < training.learning_rate
