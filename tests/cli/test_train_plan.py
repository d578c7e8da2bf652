"""wuneng train --dry-run: what a run would be and cost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import subprocess
import sys
from functools import partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import outcome
from wuneng.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
run = partial(outcome, "train")


@pytest.mark.parametrize("name", ["quickstart", "python-bytes", "fineweb-130m"])
def test_shipped_recipes_can_be_planned(name: str) -> None:
    path = str(RECIPES / f"{name}.yaml")
    code, out, err = run(path, "--dry-run", "--json", "--no-measure")
    assert (code, err) == (0, "")
    planned = json.loads(out)
    recipe = load_recipe(Path(path))
    assert planned["steps"] == recipe.training.total_steps
    assert planned["tokens_per_step"] == recipe.training.tokens_per_step
    assert planned["tokens"] == planned["steps"] * planned["tokens_per_step"]
    assert list(planned["arms"]) == list(recipe.arms)
    sizes = [arm["parameters"] for arm in planned["arms"].values()]
    assert max(sizes) <= 1.01 * min(sizes), "the baselines are not matched"
    for arm in planned["arms"].values():
        assert sum(arm["parts"].values()) == arm["parameters"]
        total = arm["memory"].pop("total")
        assert total == sum(arm["memory"].values()) > 16 * arm["parameters"]
        kept = recipe.training.keep_checkpoints  # of weights and two moments, beside the model
        kept += recipe.training.schedule == "wsd"  # the one from before the decay
        assert arm["disk_bytes"] == 4 * arm["parameters"] * (1 + 3 * kept)
        assert (arm["seconds"], arm["not_measured"]) == (None, "--no-measure")


@pytest.mark.parametrize("name", ["study-bytes", "study-reasoning", "study-fineweb"])
def test_shipped_studies_can_be_planned(name: str) -> None:
    """Every arm is tuned as often as any other, of the same size at each rung, and what the seeds
    can show is said."""
    path = RECIPES / f"{name}.yaml"
    code, out, err = run(str(path), "--dry-run", "--json", "--no-measure")
    assert (code, err) == (0, "")
    planned, recipe = json.loads(out), load_recipe(path)
    assert recipe.study is not None
    grid = [len(values) for values in recipe.study.tune.values()]
    wanted = {"tune": prod(grid) * recipe.study.tuning_seeds, "compare": recipe.study.seeds}
    rungs = {row["place"] for row in planned["runs"]}
    ladder = recipe.study.ladder
    assert len(rungs) == (len(ladder.sizes) * len(ladder.tokens_per_parameter) if ladder else 1)
    for rung in rungs:
        rows = [row for row in planned["runs"] if row["place"] == rung]
        assert {(row["stage"], row["arm"]) for row in rows} == set(product(wanted, recipe.arms))
        assert all(row["runs"] == wanted[row["stage"]] for row in rows)
        sizes = [row["parameters"] for row in rows]
        assert max(sizes) <= 1.01 * min(sizes), "the arms are not matched"
    assert 0 < planned["plan"]["minimum_detectable_effect"] < 0.02


def test_the_large_recipe_keeps_its_promises() -> None:
    _, out, _ = run(str(RECIPES / "fineweb-130m.yaml"), "--dry-run", "--json", "--no-measure")
    arm = json.loads(out)["arms"]["wuneng"]
    assert 120e6 < arm["parameters"] < 140e6
    assert 0 < arm["added_percent"] <= 5


def test_a_text_recipe_is_planned_once_it_has_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("once upon a time", encoding="utf-8")
    recipe = str(RECIPES / "text.yaml")
    planning = (recipe, "--dry-run", "--json", "--no-measure")
    code, out, _ = run(*planning, "--set", f"data.train={tmp_path}")
    assert code == 0
    assert json.loads(out)["vocab_size"] >= 256
    code, out, err = run(recipe, "--dry-run", "--set", "data.train=/no/such/place")
    assert (code, out) == (2, "")
    assert "data.train" in err
    assert "/no/such/place" in err


def test_a_plan_for_people(tiny: str) -> None:
    code, out, err = run(tiny, "--dry-run")
    assert (code, err) == (0, "")
    for words in ("state and middle heads add", "estimated memory", "feed-forward", "disk",
                  "estimated time", "each arm: 128 tokens, 2 steps of 64", "mha"):  # fmt: skip
        assert words in out
    assert "–" not in out, "every arm's time was measured"
    assert "num_state_heads: 2" not in out
    assert out.count("\n") <= 24, "one screen"
    assert not Path("runs").exists(), "a dry run writes nothing"


@pytest.mark.parametrize("columns", [60, 80])
def test_a_real_terminal_shows_whole_numbers(tiny: str, columns: int) -> None:
    """Ten arms on a terminal of 80 columns: every number was ``(6,4…``."""
    pty = pytest.importorskip("pty")
    ten = "wuneng, mha, mha-shift, rwkv7, replace, no-shift, no-snapshots, no-middle, concat, gated"
    changes = ("--set", f"arms=[{ten}]", "--set", "model.vocab_size=123456")
    code, out, err = run(tiny, "--dry-run", "--no-measure", "--json", *changes)
    assert code == 0, err
    leader, follower = pty.openpty()
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    command = [sys.executable, "-m", "wuneng_cli", "train", tiny, "--dry-run", "--no-measure"]
    process = subprocess.Popen(
        [*command, *changes],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, "TERM": "xterm", "PYTHONPATH": str(RECIPES.parent)},
    )
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # what a closed terminal says on Linux
        while piece := os.read(leader, 4096):
            shown += piece
    os.close(leader)
    assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode("utf-8")).replace("\r", "")
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= columns
    for arm in json.loads(out)["arms"].values():
        assert f"{arm['parameters']:,}" in text
        assert f"{arm['training_flops']:.2e}" in text


def test_the_recipe_comes_with_verbose(tiny: str) -> None:
    code, out, _ = run(tiny, "--dry-run", "--no-measure", "--verbose")
    assert code == 0
    assert "num_state_heads: 2" in out
    assert "time not measured: --no-measure" in out


def test_the_time_is_that_of_as_many_measured_steps(
    tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock on which a step takes 10 ms and 1 ms more for each row: 4 rows, 14 ms; 150 steps."""
    from wuneng.train import measured

    now, rows = 0.0, 0

    def step(called: Any, optimizer: Any, batch: Any, *_: Any, **__: Any) -> None:
        nonlocal now, rows
        rows = batch.input_ids.shape[0]
        now += 0.010 + 0.001 * rows

    monkeypatch.setattr(measured, "take_step", step)
    monkeypatch.setattr(measured.time, "perf_counter", lambda: now)
    code, out, err = run(tiny, "--dry-run", "--json", "--device", "cpu", "--set",
                         "training.steps=150", "--set", "training.warmup_steps=0")  # fmt: skip
    assert code == 0, err
    assert rows == 4, "as many rows as the recipe trains on at once"
    for arm in json.loads(out)["arms"].values():
        assert arm["seconds"] == pytest.approx(150 * 0.014)
        assert arm["not_measured"] == ""


def test_nothing_is_compiled_for_a_measurement(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def compile_model(*_: Any, **__: Any) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr(torch, "compile", compile_model)
    told = "measured without training.compile"
    code, out, err = run(tiny, "--dry-run", "--device", "cpu", "--set", "training.compile=true")
    assert (code, err) == (0, "")
    assert told in " ".join(out.split())


def test_what_cannot_be_measured_here_says_why(tiny: str) -> None:
    huge = ("--set", "model.hidden_size=8k", "--set", "model.num_hidden_layers=80",
            "--set", "model.num_attention_heads=64", "--device", "cpu")  # fmt: skip
    code, out, err = run(tiny, "--dry-run", *huge)
    assert (code, err) == (0, "")
    assert "time not measured: too large for this machine's processor" in out


def test_the_device_option_is_a_field(tiny: str) -> None:
    _, out, _ = run(tiny, "--dry-run", "--json", "--no-measure", "--device", "cpu")
    assert json.loads(out)["recipe"]["device"] == "cpu"
    code, _, err = run(tiny, "--dry-run", "--device", "gpu")
    assert code == 2
    assert err.startswith("error: --set device=gpu: device: expected auto, cpu")
