"""The ``synthetic`` tasks: those that a run was trained on, scored again.

Rows are the ones that training scores at its end (they depend on no seed), so a run's own arms get
the figures of results.json; here any two arms, and the controls of the state, answer them side by
side. Each length of a task is a task of its own, as in ``recall@64``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wuneng.controls.company import in_company as joined
from wuneng.data.batch import Batch, ValidationData
from wuneng.device import autocast_dtype
from wuneng.errors import ModelError, TaskError
from wuneng.evaluate.loading import LoadedModel
from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes
from wuneng.evaluate.run_tasks import run_and_recipe
from wuneng.evaluate.tasks import SYNTHETIC
from wuneng.recipe import Recipe, SyntheticData
from wuneng.records import RunDirectory
from wuneng.train.quality import measure
from wuneng.train.step import Numerics

__all__ = ["SyntheticRows", "open_synthetic", "run_synthetic"]


@dataclass(frozen=True)
class SyntheticRows:
    """The rows of a run's tasks.

    Attributes:
        recipe: the run's, resolved.
        data: the rows, at every length of the end evaluation.
        vocab_size: token ids are below it.
    """

    recipe: Recipe
    data: ValidationData
    vocab_size: int


def open_synthetic(run: RunDirectory | None, *, limit: int | None) -> SyntheticRows:
    """The rows of a run's tasks, ``limit`` of them at each length.

    Raises:
        TaskError: there is no run, or it was trained on text.
        RecipeError: its recipe cannot be read.
    """
    run, recipe = run_and_recipe(run, SYNTHETIC, "these are the tasks that a run was trained on")
    if not isinstance(recipe.data, SyntheticData):
        raise TaskError(
            f"--tasks {SYNTHETIC}: {run.path} was trained on text; --tasks validation scores its "
            "held-out text."
        )
    from wuneng.synthetic import prepare_synthetic

    training, evaluation = recipe.training, recipe.evaluation
    if limit is not None:
        few = min(limit, evaluation.examples)
        evaluation = evaluation.model_copy(update={"examples": few})
    prepared = prepare_synthetic(
        recipe.data, training, evaluation, recipe.seeds[0], training.total_steps
    )
    return SyntheticRows(recipe, prepared.final, prepared.vocab_size)


def run_synthetic(
    loaded: LoadedModel, rows: SyntheticRows, *, dtype: str = "auto", in_company: bool = False
) -> list[TaskOutcomes]:
    """Score a model on every task and length.

    Args:
        dtype: "auto" computes in the recipe's precision, as training does.
        in_company: no forward call of a single row, which another row's state needs.

    Returns:
        For each task and length "accuracy", and "loss" (nats per scored token) at the shortest.

    Raises:
        ModelError: the model has fewer tokens than the tasks.
        TaskError: a single row, which has no company.
        NonFiniteError: logits that are NaN or infinite.
    """
    size = loaded.model.get_input_embeddings().weight.shape[0]
    if size < rows.vocab_size:
        raise ModelError(
            f"{loaded.path}: has {size} tokens, the tasks of {rows.recipe.name} need "
            f"{rows.vocab_size}: it was not trained on them."
        )
    device = loaded.model.device
    precision = None
    if dtype == "auto":
        precision = autocast_dtype(rows.recipe.training.precision, device)
    batches = rows.data.batches()
    quality = measure(
        loaded.model,
        map(_checked, joined(batches)) if in_company else batches,
        Numerics.pick(device, precision),
        micro_batch_size=None if in_company else rows.recipe.training.micro_batch_size,
    )
    return [
        _outcomes(f"{task}@{length}", scores, shortest=length == min(by_length, key=int))
        for task, by_length in quality.rows.items()
        for length, scores in by_length.items()
    ]


def _outcomes(name: str, scores: dict[str, Any], *, shortest: bool) -> TaskOutcomes:
    tokens = _array(scores["tokens"])
    metrics = {"accuracy": MetricOutcomes("ratio", _array(scores["right"]), weights=tokens)}
    if shortest:
        metrics["loss"] = MetricOutcomes(
            "ratio", _array(scores["nats"]), weights=tokens, higher_is_better=False
        )
    ids = [f"row-{number}" for number in range(len(tokens))]
    return TaskOutcomes(task=name, item_ids=ids, metrics=metrics, split="validation")


def _checked(batch: Batch) -> Batch:
    if len(batch.input_ids) == 1:
        raise TaskError(
            "another row's state (permute, donor) needs two rows of each task; raise --limit"
        )
    return batch


def _array(numbers: list[Any]) -> NDArray[np.float64]:
    return np.asarray(numbers, dtype=np.float64)
