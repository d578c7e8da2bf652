"""The units of a run, one arm from one seed each: which are still to be trained, and training them
one after another.

``side_by_side`` trains them next to each other, each in a process of its own and by the functions
here, so that a unit's bits do not depend on which of the two is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype
from wuneng.distributed.processes import ALONE, Processes
from wuneng.errors import NonFiniteError, WuNengError
from wuneng.recipe import SyntheticData, TextData
from wuneng.records import refuse_links
from wuneng.records import verify as verify_files
from wuneng.records.claim import Claim, ClaimLost, remove_ended
from wuneng.records.claimant import Claimant
from wuneng.train.arm_run import Session, run_arm
from wuneng.train.display import Display
from wuneng.train.failures import Failure
from wuneng.train.low_bit import check_installed
from wuneng.train.outline import RunOutline
from wuneng.train.plan import RunPlan
from wuneng.train.results import finished_record, train_again
from wuneng.train.signals import Interrupted
from wuneng.train.unit_queue import Offer, note_failure

__all__ = [
    "Unit",
    "UnitTraining",
    "check_precision",
    "prepare",
    "reproducible",
    "say_where_tokens_are_kept",
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
            remove_ended(place.path)
            if session.check:
                verify_files(place.model, advice=train_again(place))
            session.display.note(f"{unit}: finished before, skipped")
    return found


def say_where_tokens_are_kept(used: Iterable[TextData | SyntheticData], display: Display) -> None:
    """A line about each token cache that text of ``used`` goes into."""
    from wuneng.data.cache_directory import cache_root

    for place in dict.fromkeys(data.cache_dir for data in used if isinstance(data, TextData)):
        display.note(f"tokenised text is kept in {cache_root(place)}")


def check_precision(plan: RunPlan, device: torch.device) -> None:
    """InputError for an arm that this device, or what is installed, cannot train: found out before
    the first trains."""
    for arm in plan.arms.values():
        autocast_dtype(arm.training.precision, device)
        check_installed(arm.training.optimizer)


class UnitTraining:
    """Trains units of one run, each from the first batch of its seed.

    Args:
        begun: called when the data of a seed is there.
    """

    def __init__(
        self, plan: RunPlan, session: Session, begun: Callable[[], None] = lambda: None
    ) -> None:
        self._plan, self._session, self._begun = plan, session, begun
        self._read: tuple[int, Prepared, dict[str, Any]] | None = None

    def train(self, unit: Unit, offer: Offer, claimant: Claimant) -> Failure | None:
        """Claim ``unit`` and train it; the failure where its loss was not finite any more.

        Raises:
            ClaimLost: another process was faster, or took it over meanwhile.
            Interrupted, InputError, DiskError, CheckpointError: as ``run_arm``.
        """
        plan, session = self._plan, self._session
        data = self._data(unit.seed)
        with _claimed(unit, session, offer, claimant):
            try:
                run_arm(plan, plan.arms[unit.arm], unit.seed, data, session)
            except NonFiniteError as error:
                failure = Failure(str(unit), str(error), diverged=True)
                session.processes.first(lambda: note_failure(offer.place, failure))
                return failure
        return None

    def _data(self, seed: int) -> Prepared:
        """That of ``seed``, at its first batch."""
        if self._read is None or self._read[0] != seed:
            self._read = None
            watch, processes = self._session.display.reading, self._session.processes
            data = processes.one_first(partial(prepare, self._plan, seed, watch, processes))
            self._begun()
            self._session.display.note(data.description)
            self._read = seed, data, copy.deepcopy(data.train.state_dict())
        _, data, beginning = self._read
        data.train.load_state_dict(copy.deepcopy(beginning))
        return data


@contextmanager
def _claimed(unit: Unit, session: Session, offer: Offer, claimant: Claimant) -> Iterator[None]:
    """While this process, or these together, have the unit's directory."""
    claims: list[Claim] = []
    with ExitStack() as held:

        def claim() -> None:
            refuse_links(session.run.path / unit.arm, offer.place.path)
            found = offer.claim(claimant)
            held.enter_context(found.kept())
            if session.processes.size == 1:
                claims.append(found)

        session.processes.first(claim)
        try:
            yield
        except (OSError, WuNengError) as error:
            _raise_if_lost(claims, error)
            raise


def _raise_if_lost(claims: Sequence[Claim], error: Exception) -> None:
    """ClaimLost where ``error`` came of it: another process had cleared away what was written."""
    if not isinstance(error, Interrupted | ClaimLost) and any(c.is_lost for c in claims):
        raise ClaimLost(f"{claims[0].directory}: another process has taken over") from error


def prepare(
    plan: RunPlan,
    seed: int,
    watch: Callable[[str, float], None] | None = None,
    processes: Processes = ALONE,
) -> Prepared:
    """The batches of one seed. Raises as ``prepare_text``, whose ``watch`` and ``processes`` these
    are, and ``prepare_synthetic``."""
    data, training, evaluation = plan.data, plan.training, plan.evaluation
    if isinstance(data, TextData):
        from wuneng.data import prepare_text

        tokenizer = plan.vocabulary.tokenizer
        return prepare_text(data, training, evaluation, seed, tokenizer, watch, processes)
    from wuneng.synthetic import prepare_synthetic

    return prepare_synthetic(data, training, evaluation, seed, training.total_steps)
