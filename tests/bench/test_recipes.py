"""``wuneng bench --model RECIPE``: the arms as the recipe's own plan has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

import wuneng.bench.pictures
from tests.convert.sources import save_source
from wuneng.data.tokenizer import byte_tokenizer
from wuneng_cli.main import app

RECIPE: dict[str, Any] = {
    "model": {"num_state_heads": 2, "decay_rank": 4, "rate_rank": 4},
    "data": {"kind": "text", "train": "not-there/"},
    "training": {"steps": 1, "sequence_length": 32, "batch_size": 2},
}


def bench(place: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    path = place / "asked.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    options = ["--seq-len", "16,32", "--what", "prefill", "--device", "cpu", "--seconds", "0.1"]
    result = CliRunner().invoke(
        app, ["bench", "--model", str(path), *options, "--out", str(place / "out"), "--quiet"]
    )
    assert result.exit_code == 0, result.output
    record: dict[str, Any] = json.loads((place / "out" / "bench.json").read_text())
    assert {row["status"] for row in record["rows"]} == {"ok"}
    return record


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(wuneng.bench.pictures, "draw", lambda record, directory: [])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("tokenizer", [None, "source"])
def test_a_recipe_with_its_sources_tokenizer(tokenizer: str | None, tmp_path: Path) -> None:
    """Left out, the tokenizer of a recipe that starts from a model is the model's; the model is a
    Transformer that ``wuneng train`` would convert, and the text need not be there."""
    start = save_source(tmp_path / "llama", vocab_size=257)
    byte_tokenizer().save_pretrained(start)
    recipe = {**RECIPE, "init_from": str(start), "arms": {"wuneng": {}}}
    if tokenizer is not None:
        recipe["data"] = {**RECIPE["data"], "tokenizer": tokenizer}
    models = bench(tmp_path, recipe)["models"]
    assert set(models) == {"wuneng", "mha", "rwkv7"}
    own = models["wuneng"]
    assert (own["vocab_size"], own["hidden_size"], own["num_state_heads"]) == (257, 48, 2)


def test_a_recipe_without_a_source(tmp_path: Path) -> None:
    model = {**RECIPE["model"], "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    recipe = {**RECIPE, "model": model}
    recipe["data"] = {**RECIPE["data"], "tokenizer": {"train_bpe": 300}}
    models = bench(tmp_path, recipe)["models"]
    assert {one["vocab_size"] for one in models.values()} == {300}
