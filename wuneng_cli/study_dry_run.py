"""``wuneng train --dry-run`` of a sweep or study: every run with its time, in a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wuneng_cli.dry_run import check_machine, duration, sources_of

if TYPE_CHECKING:
    from wuneng.recipe import WrittenRecipe
    from wuneng.tables import Table

__all__ = ["planned_runs", "runs_lines", "runs_table"]

_MOST_ROWS = 12
"""With more, a screen holds one row for each arm alone."""


def planned_runs(written: WrittenRecipe, *, measure: bool) -> dict[str, Any]:
    """The runs of a sweep or study, ready for JSON; of a study with its plan.

    Args:
        measure: time some steps of every arm at every rung or point; else ``seconds`` are None.

    Raises:
        DataError, RecipeError: as ``wuneng.study.plan_study`` and ``plan_run``.
    """
    study = written.recipe.study
    runs, plan = _of_sweep(written, measure) if study is None else _of_study(written, measure)
    times = [run["seconds"] for run in runs]
    whole = None if None in times else sum(times)
    return {
        "schema": 1,
        "name": written.recipe.name,
        "plan": plan,
        "runs": runs,
        "seconds": whole,
    }


def _of_sweep(
    written: WrittenRecipe, measure: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    from wuneng.recipe import points_of
    from wuneng.train.plan import plan_run

    sources, runs = sources_of(written.recipe), []
    for point in points_of(written.recipe.sweep):
        recipe = written.variant(point.values)
        plan = plan_run(recipe, sources)
        runs += _rows(point.name, "train", plan, len(recipe.seeds), measure)
    return runs, None


def _of_study(
    written: WrittenRecipe, measure: bool
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    from math import prod

    from wuneng.study import measured_widths, plan_study

    sources, runs = sources_of(written.recipe), []
    planned = plan_study(written, sources)
    if measure and planned.study.match == "time":
        planned = plan_study(written, sources, measured_widths(written, planned.runs))
    points = prod(len(values) for values in planned.study.tune.values())
    for rung in planned.rungs:
        plan = planned.runs[rung.name]
        rows = _rows(rung.name, "compare", plan, len(planned.seeds), measure)
        if planned.tuning_seeds:
            number = points * len(planned.tuning_seeds)
            runs += [_times(row, number, "tune") for row in rows]
        runs += rows
    return runs, planned.record()


def _rows(place: str, stage: str, plan: Any, number: int, measure: bool) -> list[dict[str, Any]]:
    from wuneng.train.estimate import estimate

    if measure:
        check_machine(plan, plan.device)
    found = estimate(plan, measure=measure)
    return [
        _times(
            {
                "place": place,
                "arm": name,
                "parameters": arm["parameters"],
                "tokens": found["tokens"],
                "training_flops": arm["training_flops"],
                "seconds_each": arm["seconds"],
                "not_measured": arm["not_measured"],
            },
            number,
            stage,
        )
        for name, arm in found["arms"].items()
    ]


def _times(row: dict[str, Any], number: int, stage: str) -> dict[str, Any]:
    each = row["seconds_each"]
    return {
        **row,
        "stage": stage,
        "runs": number,
        "seconds": None if each is None else number * each,
    }


def runs_table(planned: dict[str, Any], *, every: bool = False) -> Table:
    """One row for each arm, or, where they are few or ``every`` one is asked for, for each place,
    stage and arm."""
    from wuneng.tables import Column, Table

    rows = planned["runs"]
    title = f"{planned['name']}: what it would take"
    if not every and len(rows) > _MOST_ROWS:
        return _by_arm(title, rows)
    columns = [Column("where", name=True), Column("stage", name=True), Column("arm", name=True)]
    columns += map(Column, ("runs", "parameters", "tokens", "FLOPs", "time each", "time"))
    table = Table(title, columns)
    for row in rows:
        table.add_row(
            row["place"],
            row["stage"],
            row["arm"],
            f"{row['runs']:,}",
            f"{row['parameters']:,}",
            f"{row['tokens']:,}",
            f"{row['training_flops']:.2e}",
            duration(row["seconds_each"]),
            duration(row["seconds"]),
        )
    return table


def _by_arm(title: str, rows: list[dict[str, Any]]) -> Table:
    """One row for each arm: all of its runs together, from its smallest size to its largest."""
    from wuneng.tables import Column, Table

    columns = [Column("arm", name=True)]
    columns += map(Column, ("runs", "parameters", "tokens of a run", "FLOPs of all", "time of all"))
    table = Table(title, columns, caption=f"--verbose: each of the {len(rows):,} rows of places")
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        times = [row["seconds"] for row in own]
        table.add_row(
            arm,
            f"{sum(row['runs'] for row in own):,}",
            _range([row["parameters"] for row in own]),
            _range([row["tokens"] for row in own]),
            f"{sum(row['runs'] * row['training_flops'] for row in own):.2e}",
            duration(None if None in times else sum(times)),
        )
    return table


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def runs_lines(planned: dict[str, Any]) -> Iterator[str]:
    """How long all of it takes, what it can show, and why a time is missing."""
    runs = sum(row["runs"] for row in planned["runs"])
    if planned["seconds"] is not None:
        yield (
            f"all of it: {runs:,} runs, about {duration(planned['seconds'])} of training steps one "
            "after another; data, validation and scoring come on top"
        )
    plan = planned["plan"]
    if plan is not None:
        yield from _equal_time(plan)
        if plan["tune"]:
            yield (
                "a best value at the edge of its grid makes the grid longer, for every arm: that "
                "is not in the table"
            )
        yield (
            f"{len(plan['seeds'])} fresh seeds show a difference of "
            f"{plan['minimum_detectable_effect']:.2%} of {plan['primary']} four times in five, if "
            f"it moves by {plan['seed_spread']:.2%} from seed to seed (study.seed_spread); below "
            f"{plan['smallest_effect']:.2%} none matters"
        )
    reasons = dict.fromkeys(row["not_measured"] for row in planned["runs"] if row["not_measured"])
    yield from (f"time not measured: {reason}" for reason in reasons)


def _equal_time(plan: dict[str, Any]) -> Iterator[str]:
    """What ``match: time`` found."""
    if plan["match"] != "time":
        return
    for rung in plan["rungs"]:
        found = rung.get("feed_forward_widths")
        if found is None:
            yield "match: time: not measured, so the arms above are matched by parameters"
            return
        arms = (f"{arm} {one['width']:,} ({one['time']:.2f})" for arm, one in found.items())
        yield (
            f"match: time at {rung['rung']}: feed-forward width, and a step's time as a share of "
            f"{plan['reference']}'s: {', '.join(arms)}"
        )
