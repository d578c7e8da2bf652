"""The card of a trained arm: how it was trained, what it scored, and against whom.

The arm writes it with its model; once every arm of the run is trained, it gains the comparison.
Everything is read from the run's records, so a card can be made again from them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wuneng.errors import DataError, file_errors
from wuneng.foreign.markdown import markdown_text
from wuneng.hub import CARD, Card, Origin, Section, card_text, facts, origin_of, table
from wuneng.records import ArmDirectory, RunDirectory, read_json, write_text_atomic
from wuneng.records.checksums import digest, rewrite_sealed
from wuneng.train.differences import difference, in_numbers
from wuneng.train.outline import RunOutline
from wuneng.train.verdicts import figure, judged_names

__all__ = ["arm_card", "write_arm_card", "write_comparisons"]


def write_arm_card(
    run: RunDirectory, name: str, record: Mapping[str, Any], directory: Path, start: Path | None
) -> None:
    """README.md in ``directory``, which holds the trained model and is not in place yet.

    Args:
        name: of the run.
        record: what ``result.json`` will say.
        start: the directory of the model that the arm started from.
    """
    origin = None if start is None else origin_of(start, str(record["init_from"]))
    config = read_json(directory / "config.json")
    card = _card(run, name, record, config, origin, None)
    write_text_atomic(directory / CARD, card_text(card, directory))


def write_comparisons(run: RunDirectory, outline: RunOutline, results: Mapping[str, Any]) -> None:
    """Put the comparison of the arms onto the card of each; one that was edited stays as it is.

    Raises:
        DiskError: the disk is full or refuses.
    """
    for place in outline.places(run):
        if not (place.model / CARD).is_file() or not (place.model / "config.json").is_file():
            continue  # of an earlier version
        card = arm_card(run, place, outline.name, results)
        rewrite_sealed(place.model, CARD, card_text(card, place.model))


def arm_card(
    run: RunDirectory, place: ArmDirectory, name: str, results: Mapping[str, Any] | None
) -> Card:
    """The card of a finished arm.

    Args:
        results: the content of results.json; None while there is none.

    Raises:
        DataError: the records are not what a run writes.
    """
    record, config = read_json(place.result), read_json(place.model / "config.json")
    with file_errors(f"{place.result}: not the figures of an arm", DataError):
        start = record.get("init_from")
        origin = None if start is None else origin_of(place.model, str(start))
        return _card(run, name, record, config, origin, results)


def _card(
    run: RunDirectory,
    name: str,
    record: Mapping[str, Any],
    config: Mapping[str, Any],
    origin: Origin | None,
    results: Mapping[str, Any] | None,
) -> Card:
    arm = record["arm"]
    begun = f"on from {origin.name}" if origin else "from initial values"
    text = f"The arm {arm} of the comparison {name}, trained {begun} by wuneng with seed "
    if record.get("trains") == "none":
        text = f"The arm {arm} of the comparison {name}: {origin and origin.name}, untrained; seed "
    sections = [_training(run, record), Section("Figures", _figures(record))]
    if results is not None and len(results["arms"]) > 1:
        sections.append(Section("Compared", list(_compared(results, arm))))
    return Card(
        title=f"{name}: {arm}",
        summary=f"{text}{record['seed']}.",
        config=config,
        origins=[origin] if origin else [],
        sections=sections,
        trained=record.get("trains") != "none",
    )


def _training(run: RunDirectory, record: Mapping[str, Any]) -> Section:
    trains, control = record.get("trains", "all"), record.get("state_control")
    rows = [
        ("parameters", f"{record['parameters']:,}"),
        ("trained of them", _counted(record.get("trainable_parameters"))),
        ("what trains", ", ".join(trains) if isinstance(trains, list) else trains),
        *([("its state in training", control)] if control else []),
        ("tokens", f"{record['tokens']:,}"),
        ("steps", f"{record['steps']:,}"),
        ("learning rate", record.get("learning_rate")),
        ("seed", record["seed"]),
        ("SHA-256 of the resolved recipe", _sha256(run.recipe)),
        *_software(run),
    ]
    return Section("Training", facts(rows))


def _software(run: RunDirectory) -> Iterator[tuple[str, object]]:
    """What environment.json says, which only describes: a damaged one says nothing."""
    try:
        stored = read_json(run.environment)
        packages = stored["packages"]
        yield ("software", f"wuneng {packages['wuneng']}, torch {packages['torch']}")
        yield ("commit of wuneng", stored["git_commit"])
    except (DataError, KeyError, TypeError):
        return


def _sha256(file: Path) -> str | None:
    try:
        return str(digest(file)["sha256"])
    except OSError:
        return None


def _counted(number: Any) -> str | None:
    return None if number is None else f"{number:,}"


def _figures(record: Mapping[str, Any]) -> list[str]:
    examples = record.get("examples", {})
    rows = [
        (name, _number(value), _number(record.get("standard_error", {}).get(name)), examples[name])
        for name, value in record["quality"].items()
        if name in examples
    ]
    return table(("figure", "value", "standard error", "rows"), rows)


def _compared(results: Mapping[str, Any], arm: str) -> Iterator[str]:
    """Every figure that is judged, of this arm and of each other."""
    arms = results["arms"]
    ours = arms[arm]
    rows = []
    for name in [name for task in judged_names(ours["quality"]).values() for name in task]:
        for other, theirs in arms.items():
            if other == arm or name not in theirs["quality"]:
                continue
            found = difference(results, arm, other, name)
            digits = 3 if figure(ours, name).higher_is_better else 4
            values = [_number(one["quality"][name]) for one in (ours, theirs)]
            rows.append(
                (name, values[0], other, values[1], in_numbers(found, digits), found.paired)
            )
    headings = (
        "figure",
        arm,
        "other arm",
        "its value",
        "difference (95 % interval)",
        "paired over",
    )
    yield from table(headings, rows)
    if len(ours.get("seeds", ())) > 1:
        seeds = ", ".join(str(seed) for seed in ours["seeds"])
        yield from ("", f"Means over the models of seeds {seeds}, of which this is one.")
    trained = ((name, one["parameters"], one["tokens"]) for name, one in arms.items())
    yield ""
    yield from table(
        ("arm", "parameters", "training tokens"),
        [(name, f"{parameters:,.0f}", f"{tokens:,.0f}") for name, parameters, tokens in trained],
    )
    if summary := results.get("summary"):
        yield from ("", f"What the run concluded: {markdown_text(summary)}")


def _number(value: Any) -> str:
    known = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.4f}" if known else "–"
