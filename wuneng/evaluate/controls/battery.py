"""Every control of a model on the same items: what each of them costs, paired item by item."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from wuneng.controls.names import Control
from wuneng.errors import NonFiniteError
from wuneng.evaluate.comparison import TaskComparison, compare, corrected
from wuneng.evaluate.controls.wanted import Wanted, controls_for
from wuneng.evaluate.job import EvaluationRequest, Job, prepared
from wuneng.evaluate.loading import LoadedModel
from wuneng.recipe import SyntheticData

if TYPE_CHECKING:
    import torch

__all__ = ["ControlsReport", "UnderControl", "run_controls"]

_LONGEST = 4096  # of a curve, where nothing says how long the texts are


@dataclass(frozen=True)
class UnderControl:
    """The untouched model (``model``) beside the same model under a control (``baseline``)."""

    control: Control
    tasks: list[TaskComparison]


@dataclass(frozen=True)
class ControlsReport:
    """What became of a model under each control.

    Attributes:
        model: the model, described.
        found: in the order asked for. p-values are corrected over all controls but single heads,
            which are exploratory and have none.
        not_finite: by control, why it has no figures: a state that is kept from what it was
            trained with may grow beyond all numbers, which is a finding and no fault.
        notes: remarks that belong beside the figures.
    """

    request: EvaluationRequest
    model: dict[str, Any]
    found: list[UnderControl]
    not_finite: dict[str, str]
    notes: list[str]

    def of(self, *kinds: str) -> list[UnderControl]:
        """The controls of these kinds."""
        return [one for one in self.found if one.control.kind in kinds]


def run_controls(
    request: EvaluationRequest,
    wanted: Wanted,
    device: torch.device,
    *,
    notify: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> ControlsReport:
    """Score a model as it is and under each control.

    Args:
        request: its ``baseline`` and ``state`` are not used.

    Other arguments and errors as :func:`wuneng.evaluate.session.run_evaluation`; ModelError also
    for a control that does not fit the model, NonFiniteError for the model as it is and where no
    control leaves it finite.
    """
    with prepared(request, device, notify=notify, progress=progress) as job:
        loaded = job.load(request.model)
        controls, remarks = controls_for(
            loaded.model, wanted, _longest(job, loaded), partial(job.why_not, loaded)
        )
        notify(
            f"evaluating {loaded.label} as it is and under {len(controls)} controls: "
            f"{loaded.model.num_parameters():,} parameters, {device}"
        )
        right = job.score(loaded)
        found, not_finite = [], {}
        for number, control in enumerate(controls, start=1):
            notify(f"{number} of {len(controls)}: {control}")
            try:
                found.append(UnderControl(control, compare(right, job.score(loaded, control))))
            except NonFiniteError as error:
                not_finite[str(control)] = str(error)
                if len(not_finite) == len(controls):
                    raise
        described = loaded.describe()
    together = [one for one in found if one.control.head is None]
    pooled = corrected([task for one in together for task in one.tasks])
    assert len(pooled) == sum(len(one.tasks) for one in together)
    notes = [*job.notes, *remarks]
    return ControlsReport(request, described, found, not_finite, notes)


def _longest(job: Job, loaded: LoadedModel) -> int:
    """Tokens of the longest text that is scored, as far as it is known."""
    if job.rows is not None:
        recipe = job.rows.recipe
        assert isinstance(recipe.data, SyntheticData)
        return int(recipe.training.sequence_length * max(recipe.evaluation.length_multiples))
    if job.text is not None:
        return job.text.recipe.training.sequence_length
    return min(_LONGEST, getattr(loaded.model.config, "max_position_embeddings", _LONGEST))
