"""``wuneng train --dry-run``: what a recipe would take, in a table and in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wuneng.errors import InputError
from wuneng_cli.per_device import add_rows, device_lines, roof_of
from wuneng_cli.render import short_bytes

if TYPE_CHECKING:
    from wuneng.recipe import Recipe
    from wuneng.tables import Table
    from wuneng.train.plan import RunPlan
    from wuneng.train.starting_point import Sources
    from wuneng.train.workers import Workers

__all__ = [
    "check_machine",
    "duration",
    "plan",
    "plan_lines",
    "plan_table",
    "refuse",
    "sources_of",
]

_ELSEWHERE = "To plan for another machine: --no-measure, or --roof NAME"


def plan(
    recipe: Recipe, *, measure: bool = False, processes: int | None = None, roof: str | None = None
) -> dict[str, Any]:
    """Sizes and costs of every arm, ready for JSON.

    Args:
        measure: time some steps of every arm that trains; else ``seconds`` are None.
        processes: that train each arm together; default what ``parallel:`` asks for.
        roof: what ``--roof`` names.

    Raises:
        InputError: the processes cannot train an arm together, there is no such roof, or, where
            steps are measured, this machine lacks the recipe's device or precision.
        DataError: files or a tokenizer that the recipe names are missing.
        RecipeError: an arm cannot be built or sized to match the first.
    """
    from wuneng.train.estimate import estimate
    from wuneng.train.per_device import processes_of
    from wuneng.train.plan import plan_run

    size = processes or processes_of(recipe.parallel)
    shared = recipe.parallel if size > 1 or roof is not None else None
    top = roof_of(roof)
    planned = plan_run(recipe, sources_of(recipe))
    if measure and roof is None:
        check_machine(planned, recipe.device)
    return {
        "schema": 1,
        "name": recipe.name,
        "recipe": recipe.model_dump(),
        "seeds": recipe.seeds,
        **estimate(planned, measure=measure, parallel=shared, processes=size, roof=top),
    }


def refuse(recipe: Recipe, *, elsewhere: bool, workers: Workers | None = None) -> None:
    """Refuse, before anything is planned, what a run would refuse on this machine.

    Args:
        elsewhere: the plan is for another machine (``--roof``, or ``--no-measure``): only packages
            that are missing are told.

    Raises:
        InputError: a package is missing, or there is no such device.
    """
    from wuneng.train.loggers import check_installed
    from wuneng.train.lora import check_peft

    check_installed(recipe.loggers)
    if any(arm.lora for arm in recipe.arms.values()):
        check_peft()
    if elsewhere:
        return
    from wuneng.train.workers import Workers

    try:
        (workers or Workers()).devices(recipe.device)
    except InputError as error:
        raise InputError(f"{error}. {_ELSEWHERE}") from None


def check_machine(plan: RunPlan, device: str) -> None:
    """InputError for an arm whose precision ``device`` does not have, as a run would say."""
    from wuneng.device import pick_device
    from wuneng.train.units import check_precision

    try:
        check_precision(plan, pick_device(device))
    except InputError as error:
        raise InputError(f"{error}. {_ELSEWHERE}") from None


def sources_of(recipe: Recipe, *, check: bool = True) -> Sources | None:
    """What finds and converts the models that a recipe names; None where it names none.

    ``check``: compare their files with their checksums before a conversion.
    """
    if not recipe.names_models:
        return None
    from wuneng.convert import ConvertedSources

    return ConvertedSources(check=check)


def plan_table(planned: dict[str, Any]) -> Table:
    """What each arm is and takes, side by side."""
    from wuneng.tables import Column, Table

    arms = planned["arms"]
    columns = [Column("", name=True), *map(Column, arms)]
    table = Table(f"{planned['name']}: what it would take", columns, turns=True)
    for part in dict.fromkeys(part for arm in arms.values() for part in arm["parts"]):
        table.add_row(part, *(f"{arm['parts'].get(part, 0):,}" for arm in arms.values()))
    table.add_section()
    table.add_row("parameters", *(f"{arm['parameters']:,}" for arm in arms.values()))
    if any(arm["trainable_parameters"] != arm["parameters"] for arm in arms.values()):
        trainable = (f"{arm['trainable_parameters']:,}" for arm in arms.values())
        table.add_row("trainable parameters", *trainable)
    table.add_row(
        "state and middle heads add", *(f"{arm['added_percent']:.1f} %" for arm in arms.values())
    )
    table.add_row("feed-forward width", *(f"{arm['intermediate_size']:,}" for arm in arms.values()))
    _, *others = arms.values()
    table.add_row("matched by", "reference", *(arm["match"] for arm in others))
    table.add_row("training FLOPs", *(f"{arm['training_flops']:.2e}" for arm in arms.values()))
    table.add_row(
        "estimated memory", *(short_bytes(arm["memory"]["total"]) for arm in arms.values())
    )
    for stage in dict.fromkeys(s["stage"] for arm in arms.values() for s in arm["stages"]):
        table.add_row(f"  in {stage}", *(_of_stage(arm, stage) for arm in arms.values()))
    table.add_row("disk", *(short_bytes(arm["disk_bytes"]) for arm in arms.values()))
    table.add_row("estimated time", *(duration(arm["seconds"]) for arm in arms.values()))
    add_rows(table, planned)
    return table


def _of_stage(arm: dict[str, Any], name: str) -> str:
    """The memory of an arm's stages of this name, the largest."""
    held = [stage["total"] for stage in arm["stages"] if stage["stage"] == name]
    return short_bytes(max(held)) if held else "–"


def plan_lines(planned: dict[str, Any]) -> Iterator[str]:
    """The length of the run, what all of it takes, and why a time is missing."""
    seeds, arms = planned["seeds"], planned["arms"]
    yield (
        f"each arm: {planned['tokens']:,} tokens, {planned['steps']:,} steps of "
        f"{planned['tokens_per_step']:,}; seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; vocabulary {planned['vocab_size']:,}"
    )
    for source in planned["sources"]:
        if not source["share"]:
            yield f"{source['name']} is scored, and not trained on"
            continue
        epochs = source["epochs"]
        read = "how often is known once it is tokenised"
        if epochs is not None:
            read = f"about {epochs:.2g} times the source"
        share = f"{source['share']:.1%} of the tokens from {source['name']}"
        yield f"{share}: {source['tokens']:,}, {read}"
    disk = len(seeds) * sum(arm["disk_bytes"] for arm in arms.values())
    times = [arm["seconds"] for arm in arms.values()]
    whole = f"all of it: {short_bytes(disk)} on disk"
    if None not in times:
        whole += (
            f", and about {duration(len(seeds) * sum(times))} of training steps, measured here "
            "for a second each; data and validation come on top"
        )
        faster = [name for name in ("compile", "cuda_graph") if any(a[name] for a in arms.values())]
        if faster:
            whole += f" (measured without training.{' and training.'.join(faster)})"
    yield whole
    kept = max(arm["teacher_bytes"] for arm in arms.values())
    if kept:
        yield (
            f"what the teacher says (teacher_top_k): at most {short_bytes(kept)} in the cache for "
            "an arm and seed, if no row of text comes twice; those with the same teacher share it"
        )
    reasons = dict.fromkeys(arm["not_measured"] for arm in arms.values() if arm["not_measured"])
    yield from (f"time not measured: {reason}" for reason in reasons)
    yield from device_lines(planned, duration)


def duration(seconds: float | None) -> str:
    """A time in words, two digits at most: it is an estimate."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 or not seconds else f"{seconds:.1f} s"
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{seconds / 60:.0f} min"
