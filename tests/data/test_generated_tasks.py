"""Every generated task: a solver that is always right, guessers that are at chance, the same rows
from the same seed, and validation rows that are never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.guessers import ELIMINATING, GUESSERS, accuracies
from wuneng.data.batch import IGNORED
from wuneng.errors import DataError
from wuneng.recipe import load_recipe
from wuneng.recipe.data import SyntheticData
from wuneng.recipe.task_settings import TaskSettings
from wuneng.synthetic import prepare_synthetic
from wuneng.synthetic.compose import Compose
from wuneng.synthetic.groups import running_products
from wuneng.synthetic.mixture import MixtureTraining
from wuneng.synthetic.recall import Recall
from wuneng.synthetic.state_tracking import StateTracking
from wuneng.synthetic.task import Task, random_stream
from wuneng.synthetic.tasks import TASKS, make_task

#: One or more of every task; a new task must be added here (see the first test).
SETTINGS: list[dict[str, Any]] = [
    {"task": "recall", "pairs": 16, "keys": 20, "values": 16, "distinct_values": True},
    {"task": "state_tracking", "group": "parity"},
    {"task": "state_tracking", "group": "mod_7"},
    {"task": "state_tracking", "group": "s3"},
    {"task": "state_tracking", "group": "s5"},
    {"task": "compose"},
    {"task": "compose", "group": "s3"},
    {"task": "boxes"},
    {"task": "boxes", "boxes": 3, "moves": 4},
    {"task": "chain"},
    {"task": "chain", "hops": 3, "names": 5, "queries": 7},
    {"task": "brackets"},
    {"task": "brackets", "types": 2, "depth": 4},
    {"task": "selective_copy"},
    {"task": "induction"},
    {"task": "needle"},
    {"task": "needle", "needles": 4},
    {"task": "functions"},
    {"task": "functions", "family": "affine", "modulus": 17, "examples": 3},
    {"task": "addition"},
    {"task": "addition", "digits": None, "base": 2},
    {"task": "addition", "interleaved": True},
]


def settings_of(fields: dict[str, Any]) -> TaskSettings:
    data = SyntheticData.model_validate({"kind": "synthetic", "tasks": [fields]})
    return data.tasks[0]


def named(fields: dict[str, Any]) -> str:
    return "-".join(str(value) for value in fields.values())


@pytest.fixture(params=SETTINGS, ids=named)
def task(request: pytest.FixtureRequest) -> Task:
    return make_task(settings_of(request.param))


def shortest(task: Task) -> int:
    return getattr(task, "shortest", 1)


def test_every_task_is_tested() -> None:
    assert {type(settings_of(fields)) for fields in SETTINGS} == set(TASKS)


def test_the_solver_is_always_right(task: Task) -> None:
    least = shortest(task)
    for length in (least, least + 1, 63, 64, 65, 200):
        examples = task.examples(random_stream(length), 8, max(length, least))
        assert examples.inputs.shape == examples.labels.shape == (8, max(length, least))
        assert 0 <= examples.inputs.min() <= examples.inputs.max() < task.vocab_size
        assert (examples.labels != IGNORED).any(axis=1).all()
        for row, labels in zip(examples.inputs.tolist(), examples.labels.tolist(), strict=True):
            assert task.solve(row) == labels


def test_the_solver_reads_the_row(task: Task) -> None:
    """It is no copy of the generator's labels: other rows have other answers."""
    examples = task.examples(random_stream(0), 32, 64)
    solved = np.array([task.solve(row) for row in examples.inputs.tolist()])
    answers = solved[solved != IGNORED]
    assert len(set(answers.tolist())) > 1
    assert (solved != np.roll(examples.labels, 1, axis=0)).any()


def test_guessers_are_at_chance(task: Task) -> None:
    found = accuracies(task, 3000, 64)
    for guess in GUESSERS:
        assert found[guess.__name__] == pytest.approx(task.chance, abs=0.02), guess.__doc__
    for guess in ELIMINATING:
        assert found[guess.__name__] <= task.chance + 0.02, guess.__doc__


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pairs": 4, "queries": 12, "keys": 16, "values": 16},
        {"pairs": 4, "keys": 8, "values": 8, "rewrites": 4},
        {"pairs": 6, "values": 9, "distinct_values": True},
    ],
    ids=named,
)
def test_a_value_that_occurs_is_a_better_guess_in_plain_recall(fields: dict[str, Any]) -> None:
    """Why ``distinct_values`` is there: eight of 32 values occur, and one of them it is."""
    task = make_task(settings_of({"task": "recall", **fields}))
    found = accuracies(task, 3000, 64)
    assert isinstance(task, Recall)
    assert found["majority"] == pytest.approx(task.chance, abs=0.02)
    assert task.informed_chance > 1.2 * task.chance
    for guess in ("by_bag", "most_often_seen"):
        assert found[guess] == pytest.approx(task.informed_chance, abs=0.02)
    assert f"(chance {task.chance:.3f}; {task.informed_chance:.2f} by" in task.describe()


def shipped_tasks() -> Iterator[Any]:
    """(the task, its length) of every recipe of tasks."""
    for path in sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        if isinstance(recipe.data, SyntheticData):
            for settings in recipe.data.tasks:
                task, length = make_task(settings), recipe.training.sequence_length
                yield pytest.param(task, length, id=f"{path.stem}-{task.name}")


@pytest.mark.parametrize(("task", "length"), list(shipped_tasks()))
def test_guessers_are_at_chance_in_what_is_shipped(task: Task, length: int) -> None:
    """Where the values that occur say something, that is told (and no more than that is right);
    the first product of a word is its first element, which anybody sees."""
    found = accuracies(task, 4000, length)
    best = getattr(task, "informed_chance", task.chance)
    if isinstance(task, StateTracking):
        best += (1 - task.chance) / length
    for name, accuracy in found.items():
        assert accuracy <= best + 0.02, name


def test_rows_are_determined_by_the_stream(task: Task) -> None:
    first, again = (task.examples(random_stream("a"), 5, 80) for _ in range(2))
    assert np.array_equal(first.inputs, again.inputs)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.inputs, task.examples(random_stream("b"), 5, 80).inputs)


def test_a_sequence_must_be_long_enough(task: Task) -> None:
    if shortest(task) > 1:
        with pytest.raises(DataError, match=rf"needs at least {shortest(task)} tokens .* length"):
            task.examples(random_stream(0), 1, shortest(task) - 1)
        with pytest.raises(DataError, match=rf"length is {shortest(task) - 1}"):
            task.check_length(shortest(task) - 1)


def prepared(settings: Any, fields: dict[str, Any], **run: Any) -> Any:
    data = SyntheticData.model_validate({"kind": "synthetic", "tasks": [fields]})
    examples = run.pop("examples", 70)
    end = settings.evaluation(examples=examples, length_multiples=[1, 3])
    training = settings.training(**{"batch_size": 16, "sequence_length": 64, **run})
    return prepare_synthetic(data, training, end, 0, 40)


@pytest.mark.parametrize("fields", SETTINGS, ids=named)
def test_a_recipe_trains_and_scores_it_at_several_lengths(
    settings: Any, fields: dict[str, Any]
) -> None:
    run = prepared(settings, fields)
    assert run.train.next_batch().input_ids.shape == (16, 64)
    lengths = {batch.length for batch in run.final.batches()}
    assert lengths == {64, 192}
    assert f"(chance {make_task(settings_of(fields)).chance:.3f}" in run.description


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ({"task": "state_tracking"}, 9),
        ({"task": "selective_copy", "symbols": 3}, 8),
        ({"task": "induction", "symbols": 4, "queries": 2}, 7),
    ],
    ids=["parity", "selective_copy", "induction"],
)
def test_validation_rows_are_never_trained_on(
    settings: Any, fields: dict[str, Any], length: int
) -> None:
    """In spaces so small that chance alone would repeat them in the first batches."""
    run = prepared(settings, fields, sequence_length=length, batch_size=64, examples=64)
    scored = {
        tuple(row)
        for batch in run.final.batches()
        if batch.length == length
        for row in batch.input_ids.tolist()
    }
    assert isinstance(run.train, MixtureTraining)
    task = run.train.tasks[0]
    free = task.examples(random_stream("free"), 2000, length).inputs.tolist()
    assert not scored.isdisjoint(map(tuple, free)), "the space is small"
    for _ in range(40):
        assert scored.isdisjoint(map(tuple, run.train.next_batch().input_ids.tolist()))


def test_a_space_that_validation_fills_is_refused(settings: Any) -> None:
    run = prepared(settings, {"task": "state_tracking"}, sequence_length=3, examples=200)
    with pytest.raises(
        DataError,
        match=r"task 'parity' has too few different rows of 3 tokens to hold 200 of them out",
    ):
        run.train.next_batch()


@pytest.mark.parametrize("group", ["parity", "s3"])
def test_compose_needs_both_state_and_recall(group: str) -> None:
    task = Compose(settings_of({"task": "compose", "group": group}))  # type: ignore[arg-type]
    examples = task.examples(random_stream("both"), 4000, 64)
    words = examples.inputs[:, task.facts :] - 2 * task.states
    states = running_products(words, task.table)  # what a perfect state would know
    answers = examples.labels[:, task.facts :]
    for state in range(task.states):
        given = np.bincount(answers[states == state] - task.states, minlength=task.states)
        assert np.abs(given / given.sum() - task.chance).max() < 0.02
    bound = np.zeros((len(words), task.states), dtype=np.int64)  # what perfect recall would know
    np.put_along_axis(
        bound, examples.inputs[:, 0 : task.facts : 2], examples.inputs[:, 1 : task.facts : 2], 1
    )
    for state in range(task.states):
        right = answers == bound[:, state : state + 1]
        assert abs(right[:, 8:].mean() - task.chance) < 0.02
    both = np.take_along_axis(bound, states, 1)
    assert np.array_equal(both, answers)


def test_compose_has_a_curriculum_over_its_word() -> None:
    task = make_task(settings_of({"task": "compose", "curriculum": True}))
    scored = [task.scored_positions(68, progress) for progress in (0.0, 0.2, 0.4, 0.6)]
    assert scored == [4 + 8, 4 + 16, 4 + 32, 68]
    assert make_task(settings_of({"task": "compose"})).scored_positions(68, 0.0) == 68


def test_brackets_are_properly_nested() -> None:
    task = make_task(settings_of({"task": "brackets"}))
    examples = task.examples(random_stream(1), 200, 65)
    row = examples.inputs[0].tolist()
    closing = next(place for place, token in enumerate(row) if 4 <= token < 8)
    row[closing] = 4 + (row[closing] - 3) % 4
    with pytest.raises(ValueError, match=rf"position {closing}: closes another type"):
        task.solve(row)
    assert (examples.inputs[:, 0] == 9).all(), "an odd length begins with filler"


def test_needles_lie_at_every_depth() -> None:
    task = make_task(settings_of({"task": "needle"}))
    places = np.argmax(task.examples(random_stream(2), 2000, 1000).inputs == 0, axis=1)
    counts, _ = np.histogram(places, bins=10, range=(0, 999))
    assert counts.min() > 140


def test_sums_carry() -> None:
    """Half of the digits of a binary sum hang on a carry, and long runs of carries occur."""
    task = make_task(settings_of({"task": "addition", "base": 2, "digits": 16}))
    row = [2, *[1] * 16, 3, 1, *[0] * 15]  # 65535 + 1
    assert task.solve(row)[18:] == [0] * 16
    assert task.solve([2, 1, 1, *[0] * 14, 3, 1, 0, *[0] * 14])[18:21] == [0, 0, 1]
