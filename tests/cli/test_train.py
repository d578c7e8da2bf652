"""wuneng train: dry runs, errors and exit codes; what is trained is tested elsewhere."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from wuneng.errors import DiskError, InputError
from wuneng.recipe import load_recipe
from wuneng_cli.main import app

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng, mha]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2, keys: 4, values: 4}]}
training: {steps: 2, sequence_length: 16, batch_size: 4}
evaluation: {examples: 4, length_multiples: [1, 2]}
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY, encoding="utf-8")
    return "tiny.yaml"


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["train", *arguments])
    unexpected = result.exception
    if unexpected is not None and not isinstance(unexpected, SystemExit):
        raise unexpected
    return result.exit_code, result.stdout, result.stderr


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.yaml"], "error: recipe no.yaml does not exist."),
        (["tniy.yaml"], "Did you mean 'tiny.yaml'?"),
        (["tiny.yaml", "--set", "training.stesp=3"], "Did you mean 'steps'?"),
        (
            ["tiny.yaml", "--set", "model.num_attention_heads=3"],
            "expected a divisor of hidden_size",
        ),
        (["tiny.yaml", "--set", "training.sequence_length=4"], "task 'recall' needs"),
        (["tiny.yaml", "--set", "model.vocab_size=3", "--dry-run"], "model.vocab_size is 3"),
        (["tiny.yaml", "--set", "training.steps=8q"], "training.steps: expected a whole number"),
        (["tiny.yaml", "--set", "training.batch_size=0"], "expected 1 or more, got 0"),
        (["tiny.yaml", "--resume", "nowhere"], "--resume nowhere"),
        (["tiny.yaml", "--out", "tiny.yaml"], "--out tiny.yaml"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_bad_input_is_one_message_and_exit_code_2(arguments: list[str], message: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("error: ") == 1
    assert message in err
    assert "Traceback" not in err
    assert out == ""


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "absent.txt": (None, "no file or directory 'absent.txt'"),
    "empty.txt": (b"", "data.train: empty.txt is empty"),
    "short.txt": (b"ab", "fewer than one sequence of training.sequence_length"),
    "latin.txt": (b"one\ncaf\xe9\n" * 99, "latin.txt, line 2: expected UTF-8 text, got byte 0xe9"),
    "rows.jsonl": (b'{"text": "a"}\n{"body": "b"}\n', "rows.jsonl, line 2: no field 'text'"),
    "cut.jsonl.gz": (b"\x1f\x8b", "cut.jsonl.gz: damaged or cut gzip file"),
    "bad.parquet": (b"PAR1", "bad.parquet: not a readable parquet file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_data_file_is_one_message_and_leaves_no_run(
    tiny: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("WUNENG_CACHE", "cache")
    content, message = BAD_FILES[name]
    if content is not None:
        Path(name).write_bytes(content)
    Path("runs/good").mkdir(parents=True)
    Path("runs/latest").symlink_to("good")
    code, out, err = run(tiny, "--set", f"data={{kind: text, train: {name}}}", "--quiet")
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    # The corrected command takes the name, and what was the latest run before still is.
    assert sorted(path.name for path in Path("runs").iterdir()) == ["good", "latest"]
    assert Path("runs/latest").resolve().name == "good"


def test_a_full_disk_is_one_message_and_exit_code_1(tiny: str, small_disk: Path) -> None:
    """The checkpoints before it stand, and with more space the same command continues."""
    out = small_disk / "run"
    with (small_disk / "ballast").open("wb") as ballast:
        ballast.write(b"\0" * (7 << 19))  # 3.5 of the 4 MB
    arguments = (tiny, "--out", str(out), "--set", "training.checkpoint_every=1", "--quiet")
    code, _, err = run(*arguments)
    assert code == 1, err
    assert err.startswith("error: cannot write ")
    assert err.count("\n") == 1
    assert "the disk is full" in err
    saved = sorted(path.name for path in out.glob("wuneng/checkpoints/step-*"))
    assert saved
    (small_disk / "ballast").unlink()
    code, printed, err = run(*arguments)
    assert (code, err) == (0, "")
    assert f"Everything is in {out}" in printed


def test_every_problem_has_a_line(tiny: str) -> None:
    code, _, err = run(tiny, "--set", "modle.x=1", "--set", "training.stesp=3")
    assert code == 2
    assert [line[:7] for line in err.splitlines()] == ["error: ", "       "]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (DiskError("cannot write x: full"), 1, "error: cannot write x: full\n"),
        (InputError("no"), 2, "error: no\n"),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x"), 1, "error: the disk is full: "),
    ],
)
def test_exit_codes(
    tiny: str, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, message: str
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise raised

    monkeypatch.setattr("wuneng.train.run", failing)
    found, out, err = run(tiny)
    assert (found, out) == (code, "")
    assert err.startswith(message)


def test_a_bug_keeps_its_traceback(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("wuneng.train.run", failing)
    with pytest.raises(ZeroDivisionError):
        run(tiny)


def test_a_run_from_end_to_end(tiny: str) -> None:
    code, out, err = run(tiny, "--json", "--device", "cpu")
    assert code == 0, err
    result = json.loads(out)
    assert list(result["arms"]) == ["wuneng", "mha"]
    assert "recall/accuracy@32" in result["arms"]["wuneng"]["quality"]
    assert Path(result["directory"]).resolve() == Path("runs/latest").resolve()
    code, out, err = run(tiny, "--quiet", "--out", "again")
    assert (code, err) == (0, "")
    assert "parameters" in out
    assert "recall/accuracy@32" in out
    assert "step 2/2" not in out, "quiet shows no progress"
    assert "Everything is in again; report.html shows it." in out
    assert "recall/accuracy@32" in Path("again/report.html").read_text(encoding="utf-8")
    assert Path("again/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Next: wuneng eval again\n" in out
    assert "wuneng eval again --state zero" in out
    assert "generate" not in out, "a model of synthetic tasks cannot be prompted"
