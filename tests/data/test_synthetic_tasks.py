"""Labels of the synthetic tasks against plain Python, and their form at every length."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from wuneng.data.batch import IGNORED
from wuneng.errors import DataError
from wuneng.recipe import RecallTask, StateTrackingTask
from wuneng.synthetic.groups import cyclic_table, permutation_table, running_products
from wuneng.synthetic.recall import Recall
from wuneng.synthetic.state_tracking import StateTracking
from wuneng.synthetic.task import random_stream


def recall(**fields: Any) -> Recall:
    return Recall(TypeAdapter(RecallTask).validate_python(fields))


def tracking(**fields: Any) -> StateTracking:
    return StateTracking(TypeAdapter(StateTrackingTask).validate_python(fields))


def check_recall(task: Recall, inputs: list[int], labels: list[int]) -> None:
    """Reads the sequence as a person would: pairs first, then queries."""
    filler = task.keys + task.values
    known: dict[int, int] = {}
    writes = queries = 0
    position = 0
    while writes < task.pairs + task.rewrites:
        token = inputs[position]
        if token < task.keys:
            value = inputs[position + 1]
            assert task.keys <= value < filler
            assert known.get(token) != value, "a rewrite brings a new value"
            known[token] = value
            writes += 1
            position += 1
        else:
            assert token == filler
        position += 1
    assert len(known) == task.pairs
    assert all(label == IGNORED for label in labels[:position])
    asked = []
    for token, label in zip(inputs[position:], labels[position:], strict=True):
        if token == filler:
            assert label == IGNORED
        else:
            assert label == known[token]
            asked.append(token)
            queries += 1
    assert queries == task.queries
    assert len(set(asked)) == min(task.pairs, task.queries)


@given(
    st.integers(1, 12), st.integers(1, 30), st.integers(0, 9), st.integers(0, 60), st.integers(0, 9)
)
@settings(max_examples=120, deadline=None)
def test_recall_labels(pairs: int, queries: int, rewrites: int, longer: int, seed: int) -> None:
    task = recall(pairs=pairs, queries=queries, rewrites=rewrites, keys=pairs + seed, values=5)
    length = task.shortest + longer
    examples = task.examples(random_stream(seed), 4, length)
    assert examples.inputs.shape == examples.labels.shape == (4, length)
    assert examples.inputs.max() < task.vocab_size
    for inputs, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        check_recall(task, inputs, labels)


@pytest.mark.parametrize("multiple", [1, 2, 4, 8])
def test_longer_sequences_hold_as_many_pairs_further_apart(multiple: int) -> None:
    task = recall(pairs=8, rewrites=2)
    examples = task.examples(random_stream(0), 64, 64 * multiple)
    for inputs, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        check_recall(task, inputs, labels)
    last_queries = [np.flatnonzero(row != IGNORED)[-1] for row in examples.labels]
    first_pairs = [np.flatnonzero(row != task.vocab_size - 1)[0] for row in examples.inputs]
    assert np.mean(last_queries) - np.mean(first_pairs) > 0.8 * 64 * multiple


def test_recall_uses_every_key_value_and_place() -> None:
    examples = recall(pairs=3, keys=6, values=4).examples(random_stream(1), 500, 20)
    assert set(examples.inputs.flatten().tolist()) == set(range(11))
    asked = (examples.labels != IGNORED).any(axis=0)
    assert asked.sum() > 5


def test_recall_must_fit() -> None:
    with pytest.raises(DataError, match=r"task 'recall': 9 pairs need as many .* but keys is 8"):
        recall(pairs=9, keys=8)
    with pytest.raises(DataError, match=r"task 'recall': a rewritten key needs a second value"):
        recall(rewrites=1, values=1)
    with pytest.raises(DataError, match=r"needs at least 24 tokens .* sequence length is 23"):
        recall().examples(random_stream(0), 1, 23)


def compose(first: tuple[int, ...], then: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(then[i] for i in first)


@pytest.mark.parametrize("points", [3, 5])
def test_permutation_groups(points: int) -> None:
    elements = list(permutations(range(points)))
    table = permutation_table(points)
    assert table.shape == (len(elements), len(elements))
    numbers = random_stream(points).integers(0, len(elements), (300, 2)).tolist()
    for first, then in numbers:
        expected = compose(elements[first], elements[then])
        assert elements[int(table[first, then])] == expected
    assert table[0].tolist() == table[:, 0].tolist() == list(range(len(elements)))
    assert (table != table.T).any(), "not commutative"


@pytest.mark.parametrize("length", [1, 2, 7, 64, 100])
def test_running_products_go_from_the_first_on(length: int) -> None:
    table = permutation_table(3)
    elements = random_stream(length).integers(0, 6, (5, length))
    products = running_products(elements, table)
    for row, expected in zip(elements.tolist(), products.tolist(), strict=True):
        state = 0
        for element, product in zip(row, expected, strict=True):
            state = int(table[state, element])
            assert state == product


@pytest.mark.parametrize(("group", "modulus"), [("parity", 2), ("mod_2", 2), ("mod_7", 7)])
def test_counters(group: str, modulus: int) -> None:
    task = tracking(group=group)
    assert task.vocab_size == modulus
    examples = task.examples(random_stream(0), 6, 50)
    for row, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
        assert labels == [sum(row[: i + 1]) % modulus for i in range(50)]
    assert set(examples.inputs.flatten().tolist()) == set(range(modulus))
    assert cyclic_table(modulus).tolist() == [
        [(i + j) % modulus for j in range(modulus)] for i in range(modulus)
    ]


def test_permutation_tasks_score_every_position() -> None:
    for group, size in (("s3", 6), ("s5", 120)):
        task = tracking(group=group)
        examples = task.examples(random_stream(0), 3, 512)
        assert (task.name, task.vocab_size) == (group, size)
        assert task.chance == 1 / size
        assert (examples.labels != IGNORED).all()
        assert examples.labels.max() < size


def test_default_curriculum_doubles_over_the_first_half() -> None:
    task = tracking(curriculum=True)
    scored = [task.scored_positions(64, step / 60) for step in range(60)]
    assert scored == [8] * 10 + [16] * 10 + [32] * 10 + [64] * 30
    assert task.scored_positions(8, 0.0) == 8
    assert tracking().scored_positions(64, 0.0) == 64


def test_given_curriculum() -> None:
    stages = [{"until": 0.25, "scored": 4}, {"until": 0.5, "scored": 100}]
    task = tracking(curriculum=stages)
    assert [task.scored_positions(64, p) for p in (0, 0.24, 0.25, 0.5, 1)] == [4, 4, 64, 64, 64]
    with pytest.raises(DataError, match=r"task 'parity': the stages of curriculum must end one"):
        tracking(curriculum=stages[::-1])
    with pytest.raises(DataError, match=r"until = \[0\.25, 0\.25\]"):
        tracking(curriculum=[stages[0], {"until": 0.25, "scored": 5}])


def test_streams_of_different_identity_differ() -> None:
    identities: list[tuple[object, ...]] = [
        ("train", 0, "recall", 0),
        ("train", 0, "recall", 1),
        ("train", 1, "recall", 0),
        ("train", 0, "parity", 0),
        ("validation", "recall", 64, 0),
    ]
    drawn = {tuple(random_stream(*identity).integers(0, 2**32, 4)) for identity in identities}
    assert len(drawn) == len(identities)
