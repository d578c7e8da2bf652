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
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import outcome

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
run = partial(outcome, "train")


def devices_of(*arguments: str, recipe: str = "fineweb-130m") -> dict[str, Any]:
    path = str(RECIPES / f"{recipe}.yaml")
    code, out, err = run(path, "--dry-run", "--json", "--no-measure", *arguments)
    assert (code, err) == (0, "")
    arm: dict[str, Any] = json.loads(out)["arms"]["wuneng"]
    return arm


def test_memory_of_each_device_is_computed() -> None:
    """Copies hold all weights, shards their part; rows and sequences are divided."""
    assert devices_of()["per_device"] is None
    one = devices_of("--roof", "A100")
    memory = one["per_device"]["memory"]
    assert memory["total"] == one["memory"]["total"]
    assert memory["activations"] + memory["logits"] == one["memory"]["activations"]
    micro = ("--set", "training.micro_batch_size=null")
    whole = devices_of("--processes", "1", "--roof", "A100", *micro)["per_device"]["memory"]
    copies = devices_of("--processes", "4", *micro)["per_device"]
    assert copies["degrees"] == "DDP, replicate 4 x shard 1"
    assert copies["seconds"] is None
    assert copies["memory"]["weights"] == whole["weights"]
    quarter = devices_of("--roof", "A100", "--set", "training.batch_size=32", *micro)["per_device"]
    for part in ("activations", "logits"):
        assert copies["memory"][part] == quarter["memory"][part]
    assert copies["memory"]["activations"] < whole["activations"] / 3
    bits = devices_of("--roof", "A100", "--set", "training.optimizer=adamw-8bit")["per_device"]
    assert bits["memory"]["optimizer"] == memory["optimizer"] / 4
    shards = devices_of("--set", "parallel.shard=4")["per_device"]
    assert (shards["processes"], shards["degrees"]) == (4, "FSDP, replicate 1 x shard 4")
    for part in ("weights", "gradients", "optimizer"):
        assert shards["memory"][part] == pytest.approx(memory[part] / 4, rel=1e-6)
    assert shards["memory"]["gathered"] > 4 * 50304 * 768
    cut = devices_of("--set", "parallel.context=2", *micro)["per_device"]["memory"]
    short = ("--set", "training.sequence_length=2048", *micro)
    half = devices_of("--roof", "A100", *short)["per_device"]["memory"]
    assert (cut["activations"], cut["logits"]) == (half["activations"], half["logits"])
    assert cut["activations"] < whole["activations"] / 1.8
    assert cut["gathered"] == 2 * 128 * 4096 * 768 * 2 * 12, "keys and values of whole sequences"


def test_a_time_is_computed_at_rates_that_the_bench_has_measured(tmp_path: Path) -> None:
    """Marked as computed."""
    bench = tmp_path / "bench.json"
    rates = {"matmul_flops": 1e15, "bandwidth_bytes_per_second": 1e9}
    bench.write_text(json.dumps({"machine": {"rates": rates}}))
    arm = devices_of("--roof", str(bench), "--processes", "2")
    found = arm["per_device"]
    moved = 5120 * 40 * arm["parameters"] / 1e9  # longer than the computing
    assert found["seconds"] == pytest.approx(moved)
    path = str(RECIPES / "fineweb-130m.yaml")
    code, out, _ = run(path, "--dry-run", "--no-measure", "--roof", str(bench))
    assert code == 0
    assert "computed, not measured, by the measured by" not in " ".join(out.split())
    assert f"computed, not measured, at the bench's rates ({bench})" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--roof", "H10"), "--roof: expected A100, H100 NVL"),
        (("--roof", str(RECIPES / "text.yaml")), "not valid JSON"),
        (("--processes", "3", "--set", "parallel.shard=2"), "parallel.shard: expected a divisor"),
        (
            ("--set", "parallel.shard=2", "--set", "training.optimizer=adamw-8bit"),
            "adamw-8bit is not for weights that are cut",
        ),
        (("--processes", "256"), "training.batch_size: expected at least one sequence"),
        (
            ("--processes", "2", "--set", "sweep={training.clip: [1.0, 2.0]}"),
            "expected a recipe of one run",
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(arguments: tuple[str, ...], message: str) -> None:
    path = str(RECIPES / "fineweb-130m.yaml")
    code, out, err = run(path, "--dry-run", "--no-measure", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


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


@pytest.mark.parametrize(
    ("arguments", "told"), [((), True), (("--no-measure",), False), (("--quiet",), False)]
)
def test_who_waits_for_a_measurement_is_told(
    tiny: str, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: bool
) -> None:
    """On a terminal: large steps of many arms take half a minute on a slow processor."""
    for variable in ("TTY_COMPATIBLE", "FORCE_COLOR", "NO_COLOR"):  # rich 13 reads FORCE_COLOR
        monkeypatch.setenv(variable, "1")
    code, _, err = run(tiny, "--dry-run", *arguments)
    assert code == 0
    assert err == told * "timing some steps of each arm (--no-measure leaves that out)\n"


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


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--device", "cpu"], "expected a CUDA device, got cpu"),
        (["--dry-run", "--no-measure", "--processes", "2"], "expected one process, got 2"),
    ],
)
def test_what_no_graph_is_captured_for(tiny: str, more: list[str], told: str) -> None:
    code, _, err = run(tiny, *more, "--set", "training.cuda_graph=true")
    assert code == 2
    assert "training.cuda_graph: " + told in " ".join(err.split())
