"""A study from its plan to its conclusion; stopped anywhere, the same command goes on.

runs/<name>/recipe.yaml                       as written
            study-plan.json                   what will be compared, hashed before the first step
            tune/<rung>/<values>/             every arm at values that were tried
            compare/<rung>/                   every arm at its own best, from fresh seeds
            results.json                      the conclusion
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.device import require_one_process
from wuneng.errors import RunError
from wuneng.recipe import WrittenRecipe
from wuneng.records import RUNS_ROOT, ArmDirectory, read_jsonl
from wuneng.records.claim import claimed
from wuneng.study.conclusion import rung_record, study_record, study_table
from wuneng.study.equal_time import measured_widths, planned_widths
from wuneng.study.memory import cache_sizes
from wuneng.study.outcomes import arm_entries
from wuneng.study.parent import Parent, open_parent
from wuneng.study.planning import PLAN, StudyPlan, plan_study, recorded_plan, stored_plan
from wuneng.study.rungs import Rung
from wuneng.study.stage import Stage
from wuneng.study.tuning import Tuned, tune
from wuneng.train.display import Display, make_display
from wuneng.train.opening import Opening, OpenRun
from wuneng.train.paired import crossed_over_seeds
from wuneng.train.signals import Interrupted, how_to_resume
from wuneng.train.starting_point import Sources
from wuneng.train.workers import Workers

if TYPE_CHECKING:
    from wuneng.tables import Table

__all__ = ["StudyResults", "run_study"]


@dataclass(frozen=True)
class StudyResults:
    """What a finished study leaves."""

    directory: Path
    record: dict[str, Any]
    """The content of results.json."""

    @property
    def tables(self) -> list[Table]:
        """One row for each rung and arm."""
        return [study_table(self.record)]

    @property
    def sentence(self) -> str:
        """What it found."""
        return str(self.record["summary"])


def run_study(
    written: WrittenRecipe,
    out: Path | None = None,
    resume: str = "auto",
    display: Display | None = None,
    *,
    runs_root: Path = RUNS_ROOT,
    command_line: Sequence[str] | None = None,
    sources: Sources | None = None,
    verify: bool = True,
    workers: Workers | None = None,
) -> StudyResults:
    """Plan, tune every arm, compare from fresh seeds, conclude. Arguments as of ``train.run``.

    Raises:
        UnitsFailed: something failed that was no divergence; the rest was trained all the same.
        InputError, DamagedError, DiskError, Interrupted: as ``wuneng.train.run``.
    """
    require_one_process()
    assert written.recipe.study is not None
    display = make_display() if display is None else display
    opening = Opening(display, command_line, sources, verify, workers or Workers())
    plan_study(written, sources)  # complains before a directory is made
    units = len(written.recipe.arms) * written.recipe.study.seeds
    with (
        closing(display),
        open_parent(written, out, resume, runs_root, opening, units) as parent,
    ):
        try:
            return _carried_out(parent, opening, runs_root)
        except Interrupted as stopped:
            where = how_to_resume(parent.directory.path)
            raise Interrupted(f"{stopped}. {where}", stopped.signal_number) from None


def _carried_out(parent: Parent, opening: Opening, runs_root: Path) -> StudyResults:
    with claimed(parent.directory.path, opening.workers.claimant, opening.display.note):
        plan = _planned(parent, opening)
        hashed = recorded_plan(parent.directory, plan)
    for change in hashed["changes"]:
        opening.display.warn(f"changed after the plan was written: {change}")
    opening.display.note(f"plan {hashed['sha256']} ({parent.directory.path / PLAN})")
    stage = Stage(parent, opening, runs_root)
    tuned = tune(plan, stage) if plan.study.tune else {}
    rungs = _compared(plan, stage, tuned, hashed)
    record = study_record(plan, hashed, rungs)
    return StudyResults(parent.directory.path, parent.write_results(record, PLAN))


def _planned(parent: Parent, opening: Opening) -> StudyPlan:
    """The plan; where ``match`` is time, with the widths that were written or are measured now."""
    plan = plan_study(parent.written, opening.sources)
    if plan.study.match != "time":
        return plan
    stored = stored_plan(parent.directory)
    if stored is None:
        opening.display.note("match: time: steps of every arm are measured first")
        widths = measured_widths(parent.written, plan.runs)
    else:
        widths = planned_widths(stored["plan"], plan.runs)
    return plan_study(parent.written, opening.sources, widths)


def _compared(
    plan: StudyPlan, stage: Stage, tuned: Mapping[str, Tuned], hashed: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Every rung from fresh seeds, each arm at its own best values."""
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                stage.open(
                    rung,
                    f"compare/{rung.name}",
                    {"seed": plan.seeds, **_best_values(plan, rung, tuned.get(rung.name))},
                    part="final" if plan.study.tune else "all",
                )
            )
            for rung in plan.rungs
        ]
        stage.train(runs)
        return [
            _concluded(plan, rung, run, tuned.get(rung.name), hashed)
            for rung, run in zip(plan.rungs, runs, strict=True)
        ]


def _best_values(plan: StudyPlan, rung: Rung, tuned: Tuned | None) -> dict[str, Any]:
    if tuned is None:
        return {}
    lost = [arm for arm in plan.written.recipe.arms if arm not in tuned.best]
    if lost:
        raise RunError(
            f"study.tune: at {rung.name} {', '.join(lost)} diverged at every value that was tried, "
            "so there is none to compare it with. Try smaller learning rates, in a new study"
        )
    return {
        f"arms.{arm}.{path}": value
        for arm, values in tuned.best.items()
        for path, value in values.items()
    }


def _decided(plan: StudyPlan, hashed: Mapping[str, Any], tuned: Tuned | None) -> dict[str, Any]:
    """What results.json of a rung says of the study: decided before it was trained."""
    return {
        "primary": plan.study.primary,
        "smallest_effect": f"{100 * plan.study.smallest_effect:g}%",
        "match": plan.study.match,
        "seeds": plan.seeds,
        "tuning_seeds": plan.tuning_seeds,
        "tuned": {} if tuned is None else tuned.best,
        "plan_sha256": hashed["sha256"],
        "changes": hashed["changes"],
    }


def _concluded(
    plan: StudyPlan,
    rung: Rung,
    run: OpenRun,
    tuned: Tuned | None,
    hashed: Mapping[str, Any],
) -> dict[str, Any]:
    entries = arm_entries(run)
    if all(entries.values()):
        run.write_results(_decided(plan, hashed, tuned))
    primary = plan.study.primary
    entries = {  # a loss that is no number at the end is no figure either
        arm: entry if entry and all(_has(seed, primary) for seed in entry["per_seed"]) else None
        for arm, entry in entries.items()
    }
    length = plan.runs[rung.name].training.sequence_length
    sizes = {
        arm: cache_sizes(run.outline.place(run.directory, arm, plan.seeds[0]).model, length)
        for arm, entry in entries.items()
        if entry is not None
    }
    curves = {
        arm: {
            seed: _curve(run.outline.place(run.directory, arm, seed), primary)
            for seed in plan.seeds
        }
        for arm in entries
    }
    first = plan.written.recipe.reference_arm
    crossed = {
        other: crossed_over_seeds(run.directory, (first, other), plan.seeds, primary)
        for other, entry in entries.items()
        if other != first and entry is not None and entries[first] is not None
    }
    return rung_record(plan, rung, tuned, entries, sizes, curves, crossed)


def _has(seed: Mapping[str, Any], figure: str) -> bool:
    value = seed["quality"].get(figure)
    return value is not None and math.isfinite(value)


def _curve(place: ArmDirectory, figure: str) -> list[tuple[float, float]]:
    """(tokens, figure) of every validation of one arm from one seed."""
    rows = read_jsonl(place.metrics) if place.metrics.exists() else []
    measured = [(row["tokens"], row.get("validation", {}).get(figure)) for row in rows]
    return [(float(tokens), float(value)) for tokens, value in measured if value is not None]
