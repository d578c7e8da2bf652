"""A run that two processes begin, one continues and four finish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.distributed.cases import run_text
from tests.distributed.pool import Pool, pool
from tests.precision import FACTOR, FLOOR
from wuneng.distributed.processes import ALONE
from wuneng.model.pretrained import load_whole_model
from wuneng.records import read_json, read_jsonl
from wuneng.records.checksums import verify

STEPS, ROWS = 9, 6
RECIPE: dict[str, Any] = {
    "name": "text",
    "model": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "arms": ["wuneng"],
    "training": {
        "steps": STEPS,
        "sequence_length": 16,
        "batch_size": ROWS,
        "log_every": 1,
        "validate_every": 4,
        "checkpoint_every": 2,
        "num_threads": 1,
    },
    "device": "cpu",
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with pool(4) as started:
        yield started


def recipe(place: Path) -> Path:
    """Documents of many lengths, so that rows are packed and end unevenly."""
    place.mkdir()
    text = place / "text.jsonl"
    documents = [" ".join(f"{n * k % 97}" for k in range(n % 11 + 2)) for n in range(1, 90)]
    text.write_text("".join(f'{{"text": "{d}"}}\n' for d in documents))
    data = {"kind": "text", "train": str(text), "cache_dir": str(place / "cache")}
    path = place / "text.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "data": data}))
    return path


def metrics(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path.parent / "runs" / "text" / "wuneng" / "metrics.jsonl")


def test_two_one_four(processes: Pool, tmp_path: Path) -> None:
    path = recipe(tmp_path / "changing")
    # One of two is sent the signal, and both leave after the same step.
    begun = processes.run(2, run_text, path, ("parallel.shard=2",), (3, 1))
    assert all("saved at step 3 of 9" in how for how, _ in begun)
    [went_on] = [run_text(ALONE, path, (), (3, 0))]
    assert "saved at step 6 of 9" in went_on[0]
    ended = processes.run(4, run_text, path, ("parallel.shard=2", "parallel.replicate=2"), None)
    assert {how for how, _ in ended} == {"finished"}

    undisturbed = recipe(tmp_path / "undisturbed")
    how, whole = run_text(ALONE, undisturbed, (), None)
    assert how == "finished"
    for first, sessions in ((0, begun), (3, [went_on]), (6, ended)):
        for number in range(3):
            rows = Counter(chain.from_iterable(seen[number][1] for _, seen in sessions))
            assert rows == Counter(whole[first + number][1]), "the same samples, each once"
            assert rows.total() == ROWS

    check_losses(path, undisturbed)


def check_losses(path: Path, undisturbed: Path) -> None:
    """Every step was taken, with one process' losses: those of ``undisturbed``. What another order
    of sums alone does to them is the scale."""
    spread = recipe(path.parent.parent / "spread")
    run_text(ALONE, spread, ("training.micro_batch_size=1",), None)
    found, one, other = (
        torch.tensor([row["loss"] for row in metrics(p)]).double()
        for p in (path, undisturbed, spread)
    )
    allowed = FACTOR * (one - other).abs().max() + FLOOR * torch.finfo(torch.float32).eps * one
    assert ((found - one).abs() <= allowed).all()
    assert [row["step"] for row in metrics(path)] == list(range(1, STEPS + 1))
    assert [row["tokens"] for row in metrics(path)] == [row["tokens"] for row in metrics(spread)]


def test_sequences_are_divided_otherwise_each_time(processes: Pool, tmp_path: Path) -> None:
    path, undisturbed = recipe(tmp_path / "changing"), recipe(tmp_path / "undisturbed")
    begun = processes.run(2, run_text, path, ("parallel.context=2",), (3, 1))
    assert all("saved at step 3 of 9" in how for how, _ in begun)
    cut = ("parallel.context=2", "parallel.shard=2")
    went_on = processes.run(4, run_text, path, cut, (3, 2))
    assert all("saved at step 6 of 9" in how for how, _ in went_on)
    assert run_text(ALONE, path, (), None)[0] == "finished"
    run_text(ALONE, undisturbed, (), None)
    check_losses(path, undisturbed)


def test_what_is_left_is_a_model_of_transformers(processes: Pool, tmp_path: Path) -> None:
    """Of a model that was cut: whole, tied, of its own class, and what its figures are of."""
    path = recipe(tmp_path / "cut")
    processes.run(2, run_text, path, ("parallel.shard=2",), None)
    arm = path.parent / "runs" / "text" / "wuneng"
    assert read_json(arm / "model" / "config.json")["architectures"] == ["WuNengForCausalLM"]
    verify(arm)
    model = load_whole_model(arm / "model")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    one = recipe(tmp_path / "one")
    run_text(ALONE, one, (), None)
    alone = one.parent / "runs" / "text" / "wuneng"
    for name, tensor in load_whole_model(alone / "model").state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    found, expected = (read_json(p / "result.json")["quality"] for p in (arm, alone))
    assert found.keys() == expected.keys()
    assert not list(arm.glob("**/*.tmp"))
