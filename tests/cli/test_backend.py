"""A mistaken WUNENG_BACKEND is an input error of every command that computes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.model.small import small_model
from wuneng_cli.main import app

RECIPE = """
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, num_state_heads: 2}
arms: [wuneng]
data: {kind: text, train: text.txt, validation: other.txt, cache_dir: cache}
training: {steps: 1, sequence_length: 32, batch_size: 2}
device: cpu
"""
COMMANDS = {
    "train": ["train", "recipe.yaml", "--out", "run"],
    "dry-run": ["train", "recipe.yaml", "--dry-run"],
    "generate": ["generate", "model", "--prompt", "x"],
    "bench": ["bench", "--what", "decode", "--seq-len", "16", "--out", "speed"],
    "eval": ["eval", "model", "--tasks", "recall"],
    "convert": ["convert", "model", "out", "--to", "transformers"],
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "text.txt").write_text("Once upon a time. " * 40, encoding="utf-8")
    (tmp_path / "other.txt").write_text("There was a cat. " * 40, encoding="utf-8")
    small_model().save_pretrained(tmp_path / "model")
    return tmp_path


def run(name: str) -> Result:
    return CliRunner().invoke(app, COMMANDS[name])


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("WUNENG_BACKEND", "refrence", "Did you mean 'reference'?"),
        ("WUNENG_CROSS_HEAD", "triton", "WUNENG_CROSS_HEAD is no longer read"),
        ("WUNENG_NATIVE", "0", "WUNENG_BACKEND=chunked"),
    ],
)
def test_a_mistaken_environment(
    name: str, variable: str, value: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(place.iterdir())
    monkeypatch.setenv(variable, value)
    result = run(name)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert sorted(place.iterdir()) == before, "work was done first"


@pytest.mark.parametrize(
    ("value", "message"),
    [("triton", "needs CUDA tensors"), ("fla", "backend 'fla' needs")],
)
def test_a_backend_that_cannot_be_had_here(
    value: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, no traceback, and nothing else computes in its place."""
    monkeypatch.setenv("WUNENG_BACKEND", value)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    if value == "triton":
        launch = pytest.importorskip("wuneng.ops.wkv7.triton_launch", exc_type=ImportError)
        monkeypatch.setattr(launch, "INTERPRETING", False)
    result = run("train")
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
