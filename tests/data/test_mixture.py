"""Batches of several synthetic tasks: shares, one vocabulary, determinism, resuming, validation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from wuneng.data import Batch, Prepared
from wuneng.data.batch import IGNORED
from wuneng.errors import DataError
from wuneng.recipe.data import SyntheticData
from wuneng.synthetic import prepare_synthetic
from wuneng.synthetic.mixture import rows_of_tasks

TASKS: list[dict[str, Any]] = [
    {"task": "recall", "rewrites": 2},
    {"task": "state_tracking", "group": "parity", "curriculum": True},
    {"task": "state_tracking", "group": "s5", "weight": 2},
]


@pytest.fixture
def prepare(settings: Any) -> Callable[..., Prepared]:
    def call(
        tasks: list[dict[str, Any]] = TASKS,
        *,
        seed: int = 0,
        steps: int = 40,
        end: dict[str, Any] | None = None,
        **run: Any,
    ) -> Prepared:
        data = SyntheticData.model_validate({"kind": "synthetic", "tasks": tasks})
        training = settings.training(**{"batch_size": 16, "sequence_length": 32, **run})
        return prepare_synthetic(
            data, training, settings.evaluation(**(end or {"examples": 70})), seed, steps
        )

    return call


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.input_ids, second.input_ids) and torch.equal(
        first.labels, second.labels
    )


def test_tasks_have_tokens_and_rows_of_their_own(prepare: Any) -> None:
    prepared = prepare()
    assert prepared.vocab_size == prepared.train.vocab_size == 65 + 2 + 120
    batch = prepared.train.next_batch()
    assert batch.input_ids.shape == batch.labels.shape == (16, 32)
    assert (batch.input_ids.dtype, batch.labels.dtype) == (torch.int64, torch.int64)
    assert (batch.task, batch.length, batch.target_bytes) == ("mixture", 32, 0)
    assert batch.document_ids is None
    task_of = torch.bucketize(batch.input_ids, torch.tensor([64, 66]))
    assert (task_of == task_of[:, :1]).all()
    assert torch.bincount(task_of[:, 0]).tolist() == [4, 4, 8]
    labels_of = torch.bucketize(batch.labels, torch.tensor([64, 66]))
    assert (labels_of == task_of)[batch.labels != IGNORED].all()
    for half in task_of[:, 0].split(8):  # a micro-batch has rows of all
        assert torch.bincount(half).tolist() == [2, 2, 4]


@pytest.mark.parametrize(
    ("weights", "rows", "expected"),
    [
        ([1, 1], 64, [32, 32]),
        ([1, 1, 1], 64, [22, 21, 21]),
        ([3, 1], 8, [6, 2]),
        ([1000, 1], 8, [7, 1]),
        ([1.0], 5, [5]),
    ],
)
def test_rows_follow_weights(weights: list[float], rows: int, expected: list[int]) -> None:
    assert rows_of_tasks(weights, rows) == expected


def test_curriculum_follows_the_steps(prepare: Any) -> None:
    train = prepare(TASKS[1:2]).train
    scored = []
    for _ in range(40):
        labels = train.next_batch().labels
        known = (labels != IGNORED).all(dim=0)
        scored.append(int(known.sum()))
        assert known[: scored[-1]].all()
    assert scored == [8] * 10 + [16] * 10 + [32] * 20


@pytest.mark.parametrize("stop", [0, 1, 17])
def test_resuming_is_exact(prepare: Any, stop: int) -> None:
    undisturbed = prepare(seed=5).train
    expected = [undisturbed.next_batch() for _ in range(30)]
    begun = prepare(seed=5).train
    for _ in range(stop):
        begun.next_batch()
    state = json.loads(json.dumps(begun.state_dict()))
    resumed = prepare(seed=5).train
    resumed.load_state_dict(state)
    assert all(same(resumed.next_batch(), batch) for batch in expected[stop:])
    assert not same(prepare(seed=6).train.next_batch(), expected[0])
    assert not same(expected[0], expected[1])


def test_validation_is_one_task_and_length_at_a_time(prepare: Any) -> None:
    prepared = prepare(end={"examples": 70, "length_multiples": [1, 2, 8]})
    rows: dict[tuple[str, int], int] = {}
    for batch in prepared.final.batches():
        assert batch.input_ids.shape[1] == batch.length
        assert batch.input_ids.numel() <= 16 * 32
        key = (batch.task, batch.length)
        rows[key] = rows.get(key, 0) + len(batch.input_ids)
    names = ["recall", "parity", "s5"]
    assert rows == {(name, length): 70 for name in names for length in (32, 64, 256)}
    watched = list(prepared.validation.batches())
    assert {(batch.task, batch.length) for batch in watched} == {(name, 32) for name in names}
    assert not any((b.labels[:, -1] == IGNORED).any() for b in watched if b.task == "parity")


def test_validation_examples_do_not_depend_on_seed_or_batch_size(prepare: Any) -> None:
    def examples(**fields: Any) -> dict[tuple[str, int], list[list[int]]]:
        found: dict[tuple[str, int], list[list[int]]] = {}
        for batch in prepare(**fields).final.batches():
            rows = torch.cat([batch.input_ids, batch.labels], dim=1).tolist()
            found.setdefault((batch.task, batch.length), []).extend(rows)
        return found

    reference = examples()
    assert examples(seed=9) == reference
    assert examples(end={"examples": 70, "batch_size": 5}) == reference
    for rows in reference.values():
        assert len({tuple(row) for row in rows}) == len(rows)


def test_validation_is_not_seen_in_training(prepare: Any) -> None:
    prepared = prepare(TASKS[:1])
    scored = {tuple(row) for b in prepared.final.batches() for row in b.input_ids.tolist()}
    for _ in range(30):
        assert scored.isdisjoint(map(tuple, prepared.train.next_batch().input_ids.tolist()))


def test_description_names_tasks_chance_and_shares(prepare: Any) -> None:
    text = prepare().description
    assert "recall: recall of 8 pairs, 2 rewrites, 8 queries, 32 values (chance 0.031; 0.1" in text
    assert "parity: state tracking in a group of 2 elements (chance 0.500)" in text
    assert "rows of a batch: 4 of recall, 4 of parity, 8 of s5" in text
    assert prepare(TASKS[:1]).train.next_batch().task == "recall"


@pytest.mark.parametrize(
    ("tasks", "run", "message"),
    [
        (TASKS, {"batch_size": 2}, r"training\.batch_size = 2 is too small: each of the 3 tasks"),
        (TASKS[:1] * 2, {}, r"data\.tasks: two tasks are called 'recall'"),
        ([{"task": "recall", "name": "mixture"}], {}, r"data\.tasks: the name 'mixture' stands"),
        (TASKS, {"sequence_length": 16}, r"task 'recall' needs at least 28 tokens"),
    ],
)
def test_errors(prepare: Any, tasks: Any, run: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tasks, **run)


def test_preparing_makes_no_batch(prepare: Any) -> None:
    """A dry run prepares as well: rows of 256 M tokens are not made to see whether they fit."""
    prepared = prepare(sequence_length=2**28)
    assert prepared.vocab_size
