"""The units of a run, one arm from one seed each: which are still to be trained, and training them
one after another.

``side_by_side`` trains them next to each other, each in a process of its own and by the functions
here, so that a unit's bits do not depend on which of the two is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch

from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype
from wuneng.errors import NonFiniteError
from wuneng.recipe import SyntheticData, TextData
from wuneng.records import refuse_links
from wuneng.records import verify as verify_files
from wuneng.records.lock import locked
from wuneng.train.arm_run import Session, run_arm
from wuneng.train.display import Display
from wuneng.train.failures import Failure
from wuneng.train.outline import RunOutline
from wuneng.train.plan import RunPlan
from wuneng.train.results import finished_record, train_again

__all__ = [
    "Unit",
    "check_precision",
    "prepare",
    "reproducible",
    "say_where_tokens_are_kept",
    "train_in_turn",
    "unfinished",
]


@dataclass(frozen=True)
class Unit:
    """One arm from one seed."""

    arm: str
    seed: int

    def __str__(self) -> str:
        return f"{self.arm} (seed {self.seed})"


@contextmanager
def reproducible(num_threads: int | None, device: torch.device) -> Iterator[None]:
    """The thread count and, on the CPU, the algorithms that make a run repeatable to the bit."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(num_threads or threads)
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling every fresh buffer with NaN would find bugs, at a price in every operation.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


def unfinished(outline: RunOutline, session: Session) -> list[Unit]:
    """What is still to be trained, seed by seed; finished arms are checked, and told of.

    Raises:
        DamagedError, DataError: what a finished arm left is not what was written.
    """
    found = []
    for seed in outline.seeds:
        for arm in outline.arms:
            unit, place = Unit(arm, seed), outline.place(session.run, arm, seed)
            if finished_record(place, check=session.check) is None:
                found.append(unit)
                continue
            if session.check:
                verify_files(place.model, advice=train_again(place))
            session.display.note(f"{unit}: finished before, skipped")
    return found


def say_where_tokens_are_kept(data: TextData | SyntheticData, display: Display) -> None:
    """A line about the token cache, for text."""
    if isinstance(data, TextData):
        from wuneng.data.cache_directory import cache_root

        display.note(f"tokenised text is kept in {cache_root(data.cache_dir)}")


def check_precision(plan: RunPlan, device: torch.device) -> None:
    """InputError for an arm that this device cannot train: found out before the first trains."""
    for arm in plan.arms.values():
        autocast_dtype(arm.training.precision, device)


def train_in_turn(
    plan: RunPlan,
    units: Sequence[Unit],
    session: Session,
    begun: Callable[[], None] = lambda: None,
) -> list[Failure]:
    """Train ``units`` in their order, every arm of a seed from the same first batch.

    Args:
        begun: called when the data of a seed is there.

    Returns:
        Those whose loss was not finite any more: the others were trained all the same.

    Raises:
        Interrupted, InputError, DiskError, CheckpointError: as ``run_arm``.
    """
    failures = []
    for seed in dict.fromkeys(unit.seed for unit in units):
        data = session.processes.one_first(partial(prepare, plan, seed))
        begun()
        session.display.note(data.description)
        beginning = copy.deepcopy(data.train.state_dict())
        for unit in (unit for unit in units if unit.seed == seed):
            data.train.load_state_dict(copy.deepcopy(beginning))
            try:
                _train(plan, unit, data, session)
            except NonFiniteError as error:
                if len(units) > 1:
                    session.display.warn(f"{unit}: {error}")
                failures.append(Failure(str(unit), str(error), diverged=True))
    return failures


def _train(plan: RunPlan, unit: Unit, data: Prepared, session: Session) -> None:
    place = plan.outline.place(session.run, unit.arm, unit.seed)
    with ExitStack() as held:

        def claim() -> None:
            refuse_links(session.run.path / unit.arm, place.path)
            # the process of a run that was killed may still be in it
            held.enter_context(locked(place.path))

        session.processes.first(claim)
        run_arm(plan, plan.arms[unit.arm], unit.seed, data, session)


def prepare(plan: RunPlan, seed: int) -> Prepared:
    """The batches of one seed. Raises as ``prepare_text`` and ``prepare_synthetic``."""
    data, training, evaluation = plan.data, plan.training, plan.evaluation
    if isinstance(data, TextData):
        from wuneng.data import prepare_text

        return prepare_text(data, training, evaluation, seed, plan.vocabulary.tokenizer)
    from wuneng.synthetic import prepare_synthetic

    return prepare_synthetic(data, training, evaluation, seed, training.total_steps)
