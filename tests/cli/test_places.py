"""Places where nothing can be written, or where something was planted: one line, nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from wuneng.records import read_jsonl
from wuneng_cli.main import app

RECIPE = """
name: small
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng]
data: {kind: synthetic, tasks: [{task: recall, pairs: 2, keys: 4, values: 4}]}
training: {steps: 4, sequence_length: 16, batch_size: 2, num_threads: 1, checkpoint_every: 2,
           log_every: 1}
evaluation: {examples: 4, length_multiples: [1]}
device: cpu
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a recipe, a precious file and a small model."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE, encoding="utf-8")
    Path("precious").write_text("precious", encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama over bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from wuneng.data.tokenizer import byte_tokenizer

    directory = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=257, num_hidden_layers=1, num_key_value_heads=2, **sizes)
    ).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def wuneng(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)


def refused(result: Result, named: object) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    [error] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert str(named) in error
    assert "Traceback" not in result.stderr


BAD = ["precious", "precious/below", "precious/far/below", "broken-link", "n" * 300]
BAD += [place for place in ("/proc/wuneng", "/sys/wuneng") if Path(place).parent.is_dir()]


@pytest.mark.parametrize("out", BAD, ids=[bad[:20] for bad in BAD])
@pytest.mark.parametrize("command", ["train", "eval", "bench", "convert"])
def test_a_place_that_cannot_hold_results(place: Path, model: Path, command: str, out: str) -> None:
    Path("broken-link").symlink_to("nowhere/at/all")
    arguments: dict[str, list[object]] = {
        "train": ["train", "small.yaml", "--out", out, "-q"],
        "eval": ["eval", model, "--tasks", "arc", "--data-dir", ".", "--out", out],
        "bench": ["bench", "--what", "decode", "--seq-len", "16,32", "--out", out, "-q"],
        "convert": ["convert", model, out if out[0] == "n" else f"{out}/below", "-q"],
    }
    refused(wuneng(*arguments[command]), out[:20])
    assert Path("precious").read_text(encoding="utf-8") == "precious"
    assert sorted(os.listdir(place)) == ["broken-link", "precious", "small.yaml"]


@pytest.mark.parametrize("command", ["train small.yaml", "eval", "bench", "inspect", "report"])
def test_an_empty_name_is_not_the_working_directory(place: Path, command: str) -> None:
    """It is what an unset variable of a script leaves."""
    result = wuneng(*command.split(), "--out", "")
    assert result.exit_code == 2
    assert "'--out': expected a directory, got ''" in result.stderr
    assert sorted(os.listdir(place)) == ["precious", "small.yaml"]


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that refuses every write, root's too."""
    directory = tmp_path / "read-only"
    directory.mkdir()
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(directory)],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if mounted.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_read_only_place(place: Path, model: Path, read_only: Path, below: str) -> None:
    out = read_only / below
    refused(wuneng("train", "small.yaml", "--out", out, "-q"), "Read-only file system")
    refused(wuneng("bench", "--what", "decode", "--out", out, "-q"), "Read-only file system")
    refused(wuneng("convert", model, read_only / "new", "-q"), "Read-only file system")
    refused(
        wuneng("eval", model, "--tasks", "arc", "--data-dir", ".", "--out", out),
        "Read-only file system",
    )


def test_a_read_only_working_directory(
    place: Path, read_only: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(read_only)
    result = wuneng("train", place / "small.yaml", "-q")
    refused(result, "Read-only file system")
    assert "--out" in result.stderr


@pytest.mark.parametrize("kind", ["directory", "link", "text"])
def test_something_else_in_place_of_the_lock(place: Path, kind: str) -> None:
    lock = Path("run/.lock")
    lock.parent.mkdir()
    if kind == "directory":
        lock.mkdir()
    elif kind == "link":
        lock.symlink_to(place / "precious")
    else:
        lock.write_bytes(b"\xff\xfe not a number")
    result = wuneng("train", "small.yaml", "--out", "run", "-q")
    if kind == "text":
        assert result.exit_code == 0, result.output
    else:
        refused(result, lock)
    assert Path("precious").read_text(encoding="utf-8") == "precious"


def stopped_run() -> None:
    """``runs/small`` as it is left by a kill after its first checkpoint."""
    assert wuneng("train", "small.yaml", "-q").exit_code == 0
    arm = Path("runs/small/wuneng")
    for name in ("result.json", "checksums.json"):
        (arm / name).unlink()
    for name in ("results.json", "checksums.json"):
        (arm.parent / name).unlink()


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "model", ""])
def test_nothing_of_a_run_is_written_through_a_planted_link(place: Path, name: str) -> None:
    stopped_run()
    planted = Path("runs/small/wuneng", name)
    elsewhere = place / "elsewhere"
    planted.rename(elsewhere)
    planted.symlink_to(elsewhere)
    before = sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*"))
    content = elsewhere.read_bytes() if elsewhere.is_file() else b""
    result = wuneng("train", "small.yaml", "-q")
    if name == "metrics.jsonl":  # replaced by a file of its own
        assert result.exit_code == 0, result.output
        assert not planted.is_symlink()
        assert elsewhere.read_bytes() == content
        return
    refused(result, planted)
    assert "symbolic link" in result.stderr
    assert sorted((path, path.stat().st_mtime_ns) for path in elsewhere.rglob("*")) == before


def test_a_directory_that_is_a_link_may_be_named(place: Path) -> None:
    """People link runs/ to a larger disk: what the user names is theirs to link."""
    Path("large-disk").mkdir()
    Path("link").symlink_to("large-disk")
    assert wuneng("train", "small.yaml", "--out", "link", "-q").exit_code == 0
    assert Path("large-disk/results.json").is_file()


def test_latest_that_is_no_link(place: Path) -> None:
    Path("runs/latest").mkdir(parents=True)
    Path("runs/latest/mine").touch()
    refused(wuneng("train", "small.yaml", "-q"), "runs/latest")
    assert Path("runs/latest/mine").exists()


@pytest.mark.parametrize(
    "damage",
    [b'{"a": "caf\xe9"}', b"", b"[1]", b'{"resumed": 3}', b"\x00" * 40, b"[" * 100_000, None],
)
def test_what_only_describes_never_blocks_a_resume(place: Path, damage: bytes | None) -> None:
    stopped_run()
    described = Path("runs/small/environment.json")
    metrics = Path("runs/small/wuneng/metrics.jsonl")
    whole = read_jsonl(metrics)
    if damage is None:
        described.unlink()
        described.mkdir()
    else:
        described.write_bytes(damage)
    lines = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(lines[0] + b'{"step": 2, "loss": \xe9}\n' + b"".join(lines[2:]))
    result = wuneng("train", "small.yaml", "-q")
    assert result.exit_code == 0, result.output
    assert f"{described} is damaged" in result.stderr
    assert Path("runs/small/environment.damaged.json").exists()
    assert f"{metrics}: damaged and left out: line 2" in result.stderr
    steps = [row["step"] for row in read_jsonl(metrics)]
    assert steps == [row["step"] for row in whole if row["step"] != 2]
