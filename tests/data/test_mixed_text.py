"""Several sources of text by weight: shares of tokens, order, resuming, splits, what is said."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from wuneng.data import Batch, Prepared, prepare_text
from wuneng.errors import CheckpointError, DataError, RecipeError
from wuneng.recipe import load_recipe
from wuneng.train.quality import measure
from wuneng.train.step import Numerics
from wuneng.train.trainer_state import TrainerState

Write = Callable[[str, list[str]], Path]


@pytest.fixture
def files(write_jsonl: Write) -> dict[str, Path]:
    """Three sources that no letter has in common; ``c`` is small."""
    return {
        letter: write_jsonl(f"{letter}.jsonl", [f"{letter * (10 + n)}" for n in range(count)])
        for letter, count in (("a", 60), ("b", 60), ("c", 5))
    }


@pytest.fixture
def prepare(settings: Any, files: dict[str, Path]) -> Callable[..., Prepared]:
    def call(weights: dict[str, float], *, seed: int = 0, **fields: Any) -> Prepared:
        parts = [{"path": str(files[name]), "weight": weight} for name, weight in weights.items()]
        run = {n: fields.pop(n) for n in ("batch_size", "steps") if n in fields}
        data = settings.text(train=fields.pop("train", parts), **fields)
        return prepare_text(data, settings.training(**run), settings.evaluation(), seed)

    return call


def counted(batches: list[Batch]) -> dict[str, int]:
    """Tokens by the letter of their source."""
    tokens = torch.cat([batch.input_ids.flatten() for batch in batches])
    return {letter: int((tokens == ord(letter)).sum()) for letter in "abc"}


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.input_ids, second.input_ids)
        and torch.equal(first.labels, second.labels)
        and first.row_bytes == second.row_bytes
    )


def test_weights_are_shares_of_tokens_and_a_small_source_goes_round(prepare: Any) -> None:
    prepared = prepare({"a": 5, "b": 3, "c": 2}, steps=100)
    batches = [prepared.train.next_batch() for _ in range(100)]
    assert all(batch.input_ids.shape == (4, 16) for batch in batches)
    given = prepared.train.given
    assert [round(tokens / sum(given), 2) for tokens in given] == [0.5, 0.3, 0.2]
    letters = counted(batches)
    assert letters["c"] > 10 * 5 * 12  # all of it many times
    assert letters["a"] > letters["b"] > letters["c"]
    assert "50.0% of the tokens: a" in prepared.description
    small = prepared.train.sources[2].rows.tokens
    expected = f"the run sees {0.2 * 400 / -(-small // 16):.3g} times "
    assert any(
        line.startswith(expected) and line.endswith("c.jsonl")
        for line in prepared.description.splitlines()
    )


@pytest.mark.parametrize("stop", [0, 1, 13, 40])
def test_resuming_is_exact(prepare: Any, stop: int) -> None:
    weights = {"a": 0.7, "b": 0.2, "c": 0.1}
    undisturbed = prepare(weights).train
    expected = [undisturbed.next_batch() for _ in range(60)]
    begun = prepare(weights).train
    for _ in range(stop):
        begun.next_batch()
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = prepare(weights).train
    resumed.next_batch()
    resumed.load_state_dict(state)
    assert all(same(resumed.next_batch(), batch) for batch in expected[stop:])
    other = prepare(weights, seed=1).train
    assert not all(same(other.next_batch(), batch) for batch in expected)


def test_the_order_of_rows_does_not_depend_on_the_size_of_a_batch(prepare: Any) -> None:
    """Whoever takes rows of a global batch, however many there are, meets the same ones."""
    large, small = (prepare({"a": 2, "b": 1}, batch_size=size).train for size in (8, 2))
    for _ in range(10):
        rows = torch.cat([small.next_batch().input_ids for _ in range(4)])
        assert torch.equal(large.next_batch().input_ids, rows)


def test_a_run_is_not_continued_on_another_mixture(prepare: Any) -> None:
    state = prepare({"a": 2, "b": 1}).train.state_dict()
    with pytest.raises(CheckpointError, match=r"data\.train is another mixture"):
        prepare({"a": 1, "b": 1}).train.load_state_dict(state)
    with pytest.raises(CheckpointError, match="text or its tokenizer has changed"):
        prepare({"b": 2, "a": 1}).train.load_state_dict(state)


def test_validation_is_held_out_of_each_source_and_scored_by_source(prepare: Any) -> None:
    prepared = prepare({"a": 9, "b": 1}, validation_fraction=0.3)
    batches = list(prepared.final.batches())
    assert {batch.source for batch in batches} == {"a", "b"}
    for letter in "ab":
        own = counted([batch for batch in batches if batch.source == letter])
        assert own[letter] > 0
        assert sum(own.values()) == own[letter]

    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 257))

    quality = measure(Uniform(), batches, Numerics(torch.device("cpu")))
    assert {"text/bits_per_byte", "text.a/bits_per_byte", "text.b/bits_per_byte"} <= set(
        quality.values
    )
    assert quality.examples["text/loss"] == sum(
        quality.examples[f"text.{letter}/loss"] for letter in "ab"
    )
    state = TrainerState("x", 0)
    state.note_validation({"text/loss": 2.0, "text.a/loss": 1.0, "text.b/loss": 9.0})
    assert state.best["value"] == 2.0


def test_a_source_of_weight_0_is_scored_and_not_trained_on(prepare: Any) -> None:
    """What an upgraded model forgets. The figure of the whole is of what is trained on."""
    prepared = prepare({"a": 1, "b": 0}, validation_fraction=0.3)
    trained = counted([prepared.train.next_batch() for _ in range(300)])
    assert [letter for letter, number in trained.items() if number] == ["a"]
    batches = list(prepared.final.batches())
    names = {(batch.task, batch.source) for batch in batches}
    assert names == {("text", "a"), ("text.b", "")}

    class Uniform(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.zeros(*input_ids.shape, 257))

    quality = measure(Uniform(), batches, Numerics(torch.device("cpu")))
    assert {"text/loss", "text.a/loss", "text.b/loss"} <= set(quality.values)
    assert quality.examples["text/loss"] == quality.examples["text.a/loss"]
    assert "scored, and not trained on: b" in prepared.description
    assert "training: " in prepared.description
    assert not re.search("training: .*b.jsonl", prepared.description)
    state = prepared.train.state_dict()
    again = prepare({"a": 1, "b": 0}, validation_fraction=0.3)
    again.train.load_state_dict(state)
    assert torch.equal(again.train.next_batch().input_ids, prepared.train.next_batch().input_ids)
    learned = [
        prepare(mixture, tokenizer={"train_bpe": 260}).tokenizer.get_vocab()
        for mixture in ({"a": 1}, {"a": 1, "b": 0}, {"a": 1, "b": 1})
    ]
    assert learned[0] == learned[1] != learned[2]


def test_validation_files_are_scored_once(prepare: Any, write_jsonl: Write) -> None:
    valid = write_jsonl("v.jsonl", ["something else"])
    prepared = prepare({"a": 1, "b": 1}, validation=str(valid))
    [batch] = prepared.final.batches()
    assert batch.source == ""
    assert batch.target_bytes == len("something else")


def test_a_tokenizer_is_learned_from_the_training_text_of_all(prepare: Any) -> None:
    prepared = prepare({"a": 1, "b": 1}, tokenizer={"train_bpe": 262})
    spelled = {token.strip("ab") for token in prepared.tokenizer.get_vocab() if len(token) > 1}
    assert {"aa", "bb"} <= set(prepared.tokenizer.get_vocab())
    assert spelled <= {"", "<|endoftext|>"}


def test_a_data_set_and_a_stream_in_a_mixture(
    prepare: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_bytes(files["b"].read_bytes())
    parts = [
        {"path": str(files["a"]), "weight": 1},
        {"path": {"dataset": str(tmp_path / "set"), "streaming": True}, "weight": 3},
    ]
    undisturbed = prepare({}, train=parts).train
    expected = [undisturbed.next_batch() for _ in range(40)]
    assert abs(undisturbed.given[1] / sum(undisturbed.given) - 0.75) < 0.01
    begun = prepare({}, train=parts).train
    for _ in range(17):
        begun.next_batch()
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = prepare({}, train=parts).train
    resumed.load_state_dict(state)
    assert all(same(resumed.next_batch(), batch) for batch in expected[17:])


def test_a_source_that_is_too_short_is_named(prepare: Any, write_jsonl: Write) -> None:
    short = write_jsonl("short.jsonl", ["ab", "cd"])
    parts = [{"path": str(short)}]
    with pytest.raises(DataError, match=r"data\.train\.0\.path: .*short\.jsonl has \d training"):
        prepare({}, train=parts)
    with pytest.raises(DataError, match=r"data\.train\.1\.path: no file or directory 'nothing'"):
        prepare({}, train=[{"path": str(short)}, {"path": "nothing"}])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("{path: a.txt, weigth: 2}", r"data\.train\.0\.weigth is not .* Did you mean 'weight'"),
        ("{path: a.txt, weight: 0}", r"data\.train: expected a weight above 0, got none"),
        ("{path: a.txt, weight: -1}", r"data\.train\.0\.weight: expected .*, got -1"),
        (
            "{path: a.txt, weight: 0}, {path: b.txt}], validation: [c.txt",
            r"data\.train\.0\.weight: expected a value above 0 where data\.validation says",
        ),
        ("{path: a.txt}, b.txt", r"data\.train\.1: expected a mapping, got 'b\.txt'"),
        ("{path: a.txt, name: a b}", r"data\.train\.0\.name: expected text that matches"),
    ],
)
def test_what_is_wrong_with_a_mixture(tmp_path: Path, part: str, message: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: x\nmodel: {{hidden_size: 64}}\ndata: {{kind: text, train: [{part}]}}\n"
        "training: {steps: 9, sequence_length: 16, batch_size: 2, warmup_steps: 1}\n"
    )
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe)


def test_names_of_sources(settings: Any) -> None:
    from wuneng.recipe.data import part_names

    data = settings.text(
        train=[
            {"path": "books/*.txt"},
            {"path": "x/code.jsonl.gz"},
            {"path": {"dataset": "y/code"}},
            {"path": "z", "name": "mine"},
        ]
    )
    assert part_names(data.mixture) == ["source", "code", "code-2", "mine"]
    with pytest.raises(ValidationError):
        settings.text(train=[])


def test_the_dry_run_says_shares_tokens_and_epochs(
    tmp_path: Path, files: dict[str, Path], prepare: Any
) -> None:
    from wuneng.train.estimate import estimate
    from wuneng.train.plan import plan_run
    from wuneng_cli.dry_run import plan_lines

    recipe = tmp_path / "r.yaml"
    parts = [{"path": str(files["a"]), "weight": 3}, {"path": str(files["b"]), "weight": 1}]
    recipe.write_text(
        f"name: x\nmodel: {{hidden_size: 64, num_hidden_layers: 1}}\narms: [mha]\n"
        f"data: {{kind: text, train: {json.dumps(parts)}}}\ndevice: cpu\n"
        "training: {steps: 90, sequence_length: 16, batch_size: 4, warmup_steps: 1}\n"
    )

    def planned() -> dict[str, Any]:
        return {"name": "x", "seeds": [0], **estimate(plan_run(load_recipe(recipe)))}

    found = planned()
    assert [source["name"] for source in found["sources"]] == ["a", "b"]
    assert [source["tokens"] for source in found["sources"]] == [4320, 1440]
    assert [source["epochs"] for source in found["sources"]] == [None, None]
    assert "75.0% of the tokens from a: 4,320, how often is known once it is tokenised" in list(
        plan_lines(found)
    )
    train = prepare({"a": 3, "b": 1}).train
    again = planned()
    for source, stored in zip(again["sources"], train.sources, strict=True):
        assert source["epochs"] == pytest.approx(source["tokens"] / stored.rows.tokens, rel=0.05)
    assert any("times the source" in line for line in plan_lines(again))
