"""The validation task: a run's held-out text, for its own arms and for any other model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from wuneng.errors import TaskError
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.perplexity import BLOCK_BYTES, open_validation, run_validation, same_tokens
from wuneng.records import RunDirectory

Load = Callable[..., Any]


def validation_text(run: Path, *, by_row: bool = True, limit: int | None = None) -> Any:
    return open_validation(RunDirectory(run), by_row=by_row, limit=limit)


@pytest.fixture
def held_out(text_run: Path) -> bytes:
    import json

    lines = (text_run.parents[1] / "text" / "valid.jsonl").read_text(encoding="utf-8")
    return "".join(json.loads(line)["text"] for line in lines.splitlines()).encode("utf-8")


def test_a_run_scores_what_training_reports(load: Load, text_run: Path, held_out: bytes) -> None:
    """The same figures as the end of training: packed rows with their document ids."""
    from wuneng.data import prepare_text
    from wuneng.recipe import load_recipe

    loaded = load(text_run / "wuneng" / "model")
    found = run_validation(HarnessModel(loaded), validation_text(text_run))
    recipe = load_recipe(text_run / "recipe.yaml")
    prepared = prepare_text(recipe.data, recipe.training, recipe.evaluation, 0)  # type: ignore[arg-type]
    nats, count, size = 0.0, 0, 0
    for batch in prepared.final.batches():
        with torch.no_grad():
            scores = loaded.model(
                batch.input_ids, document_ids=batch.document_ids, use_cache=False
            ).logits
        nats += F.cross_entropy(
            scores.flatten(0, 1), batch.labels.flatten(), reduction="sum"
        ).item()
        count += int((batch.labels != -100).sum())
        size += batch.target_bytes
    assert size == len(held_out)
    metrics = {name: one.estimate().value for name, one in found.metrics.items()}
    assert metrics["bits_per_byte"] == pytest.approx(nats / size / math.log(2), rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_rows_of_two_arms_pair(load: Load, text_run: Path) -> None:
    found = [
        run_validation(HarnessModel(load(text_run / arm / "model")), validation_text(text_run))
        for arm in ("wuneng", "mha")
    ]
    assert found[0].item_ids == found[1].item_ids
    weights = [one.metrics["bits_per_byte"].weights for one in found]
    assert np.array_equal(weights[0], weights[1])  # type: ignore[arg-type]


def test_a_model_with_another_tokenizer_is_scored_on_the_same_bytes(
    load: Load, text_run: Path, shared_data: Path, held_out: bytes
) -> None:
    other = load(shared_data / "models" / "tinystories_656k", dtype="fp32")
    own = load(text_run / "wuneng" / "model")
    assert not same_tokens(own.tokenizer, other.tokenizer)
    found = [
        run_validation(HarnessModel(model), validation_text(text_run, by_row=False))
        for model in (own, other)
    ]
    for one in found:
        assert set(one.metrics) == {"bits_per_byte"}
        assert one.item_ids == [f"block-{i}" for i in range(-(-len(held_out) // BLOCK_BYTES))]
        weights = one.metrics["bits_per_byte"].weights
        assert weights is not None
        assert weights.sum() == pytest.approx(len(held_out), abs=2)


def test_blocks_and_rows_give_one_figure(load: Load, text_run: Path) -> None:
    model = HarnessModel(load(text_run / "wuneng" / "model"))
    values = [
        run_validation(model, validation_text(text_run, by_row=by_row))
        .metrics["bits_per_byte"]
        .estimate()
        .value
        for by_row in (True, False)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_limit_counts_items(load: Load, text_run: Path) -> None:
    model = HarnessModel(load(text_run / "wuneng" / "model"))
    assert run_validation(model, validation_text(text_run, limit=3)).n == 3
    assert run_validation(model, validation_text(text_run, by_row=False, limit=1)).n == 1


def test_permuted_state_is_scored_too(load: Load, text_run: Path) -> None:
    from wuneng.controls.names import Control
    from wuneng.controls.switch import controlled

    loaded = load(text_run / "wuneng" / "model")
    model = HarnessModel(loaded, companion=True)
    with controlled(loaded.model, Control("permute")):
        permuted = run_validation(model, validation_text(text_run))
    kept = run_validation(model, validation_text(text_run))
    assert permuted.item_ids == kept.item_ids
    assert permuted.metrics["perplexity"].estimate() != kept.metrics["perplexity"].estimate()


def test_same_tokens(load: Load, llama_directory: Path, wuneng_directory: Path) -> None:
    assert same_tokens(load(llama_directory).tokenizer, load(wuneng_directory).tokenizer)


def test_without_a_run_there_is_no_validation_text() -> None:
    with pytest.raises(TaskError, match="neither MODEL nor the baseline belongs to a run"):
        open_validation(None, by_row=True, limit=None)


def test_synthetic_runs_have_none(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "recipe.yaml").write_text(
        "data: {kind: synthetic, tasks: [{task: recall}]}\n"
        "training: {steps: 1, sequence_length: 32}\n"
    )
    with pytest.raises(TaskError, match="was trained on synthetic tasks"):
        validation_text(run)


def test_text_of_weight_0_is_no_part_of_the_validation_text(text_run: Path, tmp_path: Path) -> None:
    """It has a figure of its own in results.json, and none of the whole."""
    import yaml

    from wuneng.data.tokenizer import byte_tokenizer

    lines = {"a": "aaaa bb", "b": "cccc dd"}
    for name, text in lines.items():
        rows = "".join(f'{{"text": "{text} {number}"}}\n' for number in range(80))
        (tmp_path / f"{name}.jsonl").write_text(rows)
    run = tmp_path / "run"
    run.mkdir()
    recipe = yaml.safe_load((text_run / "recipe.yaml").read_text())
    recipe["data"] |= {
        "train": [{"path": str(tmp_path / f"{n}.jsonl"), "weight": int(n == "a")} for n in lines],
        "validation": None,
        "validation_fraction": 0.3,
        "tokenizer": "bytes",
        "cache_dir": str(tmp_path / "cache"),
    }
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for limit in (None, 1):
        text = validation_text(run, limit=limit)
        batches = list(text.rows(byte_tokenizer(), 512))
        found = {chr(n) for b in batches for n in b.input_ids.flatten().tolist() if n < 256}
        assert "a" in found
        assert not found & {"c", "d"}
        assert limit is None or len(batches) == limit
