"""The card of a converted model: what it was made of, and the proof that it computes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wuneng.errors import DataError
from wuneng.evaluate.loading import run_of
from wuneng.hub import Card, Origin, Section, facts, origin_of, table
from wuneng.records import ArmDirectory, RunDirectory, read_json
from wuneng.train.model_card import arm_card

__all__ = ["conversion_card"]


def conversion_card(
    record: Mapping[str, Any],
    place: Path,
    config: Mapping[str, Any],
    *,
    repository: str | None = None,
) -> Card:
    """The card of what was made of the directory or file ``place``.

    A run's model brings along how it was trained and compared.

    Args:
        record: the content of convert.json.
        config: the destination's, as config.json has it.
        repository: where it goes on the hub.

    Raises:
        DataError: the records of the run that it comes from are not what a run writes.
    """
    run = run_of(place)
    arm = ArmDirectory(place.resolve().parent)
    sections = [Section("Conversion", _conversion(record))]
    if run is not None and arm.result.is_file():
        trained = arm_card(run, arm, run.path.name, _results(run))
        sections = [*trained.sections, *sections]
        return replace(trained, config=config, sections=sections, repository=repository)
    origin = origin_of(place, str(record["source"]))
    donors = [Origin(Path(record["state_from"]["from"]).name)] if record.get("state_from") else []
    return Card(
        title=f"{config['model_type']} of {origin.name}",
        summary=f"{origin.name}, converted by wuneng: {record['what']}."
        f"{' Its new heads are silent: they are there to be trained.' * _is_silent(record)}",
        config=config,
        origins=[origin, *donors],
        sections=sections,
        repository=repository,
    )


def _is_silent(record: Mapping[str, Any]) -> bool:
    return bool(record["tensors"]["new"]) and "seed" in record


def _results(run: RunDirectory) -> Mapping[str, Any] | None:
    if not run.results.is_file():
        return None
    results = read_json(run.results)
    if not isinstance(results, dict) or not isinstance(results.get("arms"), dict):
        raise DataError(f"{run.results}: not the results of a run")
    return results


def _conversion(record: Mapping[str, Any]) -> list[str]:
    tensors = record["tensors"]
    lines = facts(
        [
            ("what", record["what"]),
            ("parameters", f"{record['parameters']:,}"),
            ("of them in state and middle heads", f"{record['added_parameters']:,}"),
            ("tensors kept", f"{tensors['kept']:,}"),
            ("new", f"{tensors['new']:,}"),
            ("left out", f"{len(tensors['dropped']):,}"),
        ]
    )
    return [*lines, "", *_proof(record)]


def _proof(record: Mapping[str, Any]) -> Sequence[str]:
    if not record["verified"]:
        return ["**Not verified**: the logits were not compared with the source's."]
    if not record["checks"]:
        return [f"Verified on {record['verified_on']}."]
    rows = [
        (
            check["name"],
            check["dtype"],
            check["positions"],
            f"{check['max_abs_logit_difference']:.3g}",
            "" if check["tolerance"] is None else f"{check['tolerance']:.2g}",
            "for information" if check["tolerance"] is None else "same",
        )
        for check in record["checks"]
    ]
    headings = ("check", "dtype", "tokens", "largest difference of a logit", "allowed", "verdict")
    return [f"Compared with the source on {record['verified_on']}:", "", *table(headings, rows)]
