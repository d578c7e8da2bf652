"""From a recipe's synthetic settings to the batches of a run."""

from __future__ import annotations

from wuneng.data.batch import Prepared
from wuneng.errors import DataError
from wuneng.recipe.data import SyntheticData
from wuneng.recipe.training import EndEvaluation, Training
from wuneng.synthetic.mixture import MIXTURE, MixtureTraining, MixtureValidation
from wuneng.synthetic.tasks import make_task

__all__ = ["prepare_synthetic"]

# Validation during training is there to watch, and must not cost much.
_EXAMPLES_WATCHED = 128


def prepare_synthetic(
    data: SyntheticData,
    training: Training,
    evaluation: EndEvaluation,
    seed: int,
    total_steps: int,
) -> Prepared:
    """The tasks of a recipe as batches; ``total_steps`` is what curricula are fractions of.

    Validation during training is at the training length; the end evaluation is at every
    ``evaluation.length_multiples`` of it. Raises DataError when a task does not fit into the
    sequence length, the batch has fewer rows than there are tasks, or two tasks share a name.
    """
    tasks = [make_task(settings) for settings in data.tasks]
    _check_names([task.name for task in tasks])
    length = training.sequence_length
    rows = evaluation.batch_size or training.batch_size
    validation = MixtureValidation(
        tasks,
        examples=min(_EXAMPLES_WATCHED, evaluation.examples),
        batch_size=rows,
        lengths=[length],
    )
    final = MixtureValidation(
        tasks,
        examples=evaluation.examples,
        batch_size=rows,
        lengths=[length * multiple for multiple in evaluation.length_multiples],
    )
    train = MixtureTraining(
        tasks,
        [settings.weight for settings in data.tasks],
        batch_size=training.batch_size,
        sequence_length=length,
        total_steps=total_steps,
        seed=seed,
        held_out=MixtureValidation(
            tasks, examples=evaluation.examples, batch_size=rows, lengths=[length]
        ),
    )
    for task in tasks:
        task.check_length(length)
    shares = ", ".join(f"{n} of {task.name}" for n, task in zip(train.rows, tasks, strict=True))
    lines = [*(task.describe() for task in tasks), f"rows of a batch: {shares}"]
    return Prepared(
        train=train,
        validation=validation,
        final=final,
        tokenizer=None,
        vocab_size=train.vocab_size,
        description="\n".join(lines),
    )


def _check_names(names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            f"data.tasks: two tasks are called {repeated[0]!r}; give each a name of its own"
        )
    if MIXTURE in names:
        raise DataError(f"data.tasks: the name {MIXTURE!r} stands for all tasks; choose another")
