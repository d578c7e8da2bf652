"""results.json: the arms side by side, put together from what each finished arm left behind.

Every finished arm (and seed) has a ``result.json`` of its own, written last; its presence is what
makes a resumed run skip the arm. With several seeds the figures of results.json are means over
them: ``quality_std`` is the spread (n - 1), ``seeds`` lists them, ``per_seed`` has each one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wuneng.errors import DataError
from wuneng.records import (
    ArmDirectory,
    RunDirectory,
    read_json,
    verify,
    write_json,
    write_sealed_json,
)
from wuneng.statistics import over_seeds
from wuneng.train.figures import ROWS_SCHEMA
from wuneng.train.model_card import write_comparisons
from wuneng.train.outline import RunOutline
from wuneng.train.paired import paired_differences
from wuneng.train.plan import ArmFacts
from wuneng.train.quality import Quality
from wuneng.train.record_check import record_problem
from wuneng.train.summary import closing_sentence
from wuneng.train.trainer_state import TrainerState
from wuneng.train.training_notes import training_notes

__all__ = [
    "arm_record",
    "finished_record",
    "save_record",
    "save_rows",
    "train_again",
    "write_results",
]

_AVERAGED = ("tokens", "training_flops", "seconds", "tokens_per_second", "data_wait", "final_loss")


def arm_record(
    arm: str,
    facts: ArmFacts,
    kept: Mapping[str, int],
    state: TrainerState,
    quality: Quality,
    final_loss: float | None,
) -> dict[str, Any]:
    """The record of one finished arm and seed.

    Args:
        kept: ``cache_bytes`` and ``state_bytes`` of a sequence of the length that it was trained
            at, in float32, of the model as it is saved.
    """
    rate = state.timed_tokens / state.timed_seconds if state.timed_seconds else 0.0
    skipped = state.skipping.get("batches", 0)
    return {
        "schema": 1,
        "arm": arm,
        "seed": state.seed,
        "kind": facts.kind,
        "token_shift": facts.token_shift,
        "short_conv": facts.short_conv,
        "parameters": facts.parameters,
        "trainable_parameters": facts.trainable,
        "init_from": facts.init_from,
        "trains": facts.trains,
        **({} if facts.state == "keep" else {"state_control": facts.state}),
        **kept,
        "added_percent": round(facts.added_percent, 3),
        "training_flops": facts.flops_per_token * state.tokens,
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(state.seconds, 3),
        "tokens_per_second": round(rate, 1),
        "data_wait": round(state.data_wait, 4),
        "learning_rate": facts.learning_rate,
        "final_loss": final_loss,
        "best_validation": state.best,
        "quality": quality.values,
        "standard_error": quality.standard_errors,
        "examples": quality.examples,
        **({"skipped_batches": skipped} if skipped else {}),
    }


def save_rows(directory: ArmDirectory, quality: Quality) -> None:
    """Write what each row of the end evaluation scored, for pairing the arms."""
    write_json(directory.rows, {"schema": ROWS_SCHEMA, "rows": quality.rows})


def save_record(directory: ArmDirectory, record: Mapping[str, Any]) -> None:
    """Write the arm's ``result.json`` and checksums: from now on the arm is finished."""
    write_sealed_json(
        directory.result, dict(record), beside=(directory.rows.name, directory.metrics.name)
    )


def finished_record(directory: ArmDirectory, *, check: bool = True) -> dict[str, Any] | None:
    """The arm's record, or None while the arm is unfinished.

    Args:
        check: compare the arm's files with their checksums, where there are some.

    Raises:
        DamagedError: a file of the arm is not what was written.
        DataError: the record is not one.
    """
    path = directory.result
    if not path.exists():
        return None
    if check:
        verify(directory.path, advice=train_again(directory))
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema") != 1:
        raise DataError(f"{path} is not the result of an arm. {train_again(directory)}")
    if problem := record_problem(record):
        raise DataError(f"{path} is no arm's result: {problem}. {train_again(directory)}")
    return record


def train_again(directory: ArmDirectory) -> str:
    """What to do about a damaged file of a finished arm."""
    return f"Delete {directory.result} and run the command again to make the arm's files anew."


def write_results(
    run: RunDirectory,
    outline: RunOutline,
    *,
    check: bool = True,
    study: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write ``results.json`` once every arm is finished from every seed; returns its content.

    Args:
        study: what the study that the run belongs to decided before it, for who reads the results.

    Raises:
        DamagedError: with ``check``, a file of an arm is not what was written.
    """
    arms: dict[str, Any] = {}
    for arm in outline.arms:
        directories = [outline.place(run, arm, seed) for seed in outline.seeds]
        records = [finished_record(directory, check=check) for directory in directories]
        assert all(records), f"arm {arm} is not finished"
        arms[arm] = combine([record for record in records if record])
        if best := _best_checkpoints(run, directories, records):
            arms[arm]["best_checkpoints"] = best
    results: dict[str, Any] = {
        "schema": 1,
        "name": outline.name,
        "reference": outline.reference,
        "arms": arms,
    }
    if study is not None:
        results["study"] = dict(study)
    if paired := paired_differences(run, arms, (study or {}).get("primary")):
        results["paired"] = paired
    results["summary"] = f"{closing_sentence(results)} {training_notes(results)}".rstrip()
    write_comparisons(run, outline, results)
    write_sealed_json(run.results, results, beside=(run.recipe.name,))
    return results


def _best_checkpoints(
    run: RunDirectory,
    directories: Sequence[ArmDirectory],
    records: Sequence[Mapping[str, Any] | None],
) -> list[dict[str, Any]]:
    """``{"directory", "step", "name", "value"}`` of each seed's, where the recipe keeps them."""
    found = []
    for directory, record in zip(directories, records, strict=True):
        best = (record or {}).get("best_validation", {})
        if best.get("kept"):
            place = (directory.checkpoints / f"step-{best['step']}").relative_to(run.path)
            own = {key: best[key] for key in ("step", "name", "value")}
            found.append({"directory": place.as_posix(), **own})
    return found


def combine(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One arm's entry in results.json from its records, one per seed."""
    first = records[0]
    entry = {key: value for key, value in first.items() if key not in ("schema", "arm", "seed")}
    entry["seeds"] = [record["seed"] for record in records]
    if len(records) == 1:
        return entry
    if skipped := sum(record.get("skipped_batches", 0) for record in records):
        entry["skipped_batches"] = skipped
    for key in _AVERAGED:
        if values := [record[key] for record in records if key in record]:  # data_wait came later
            entry[key] = over_seeds(values).mean
    quality = {
        name: over_seeds([record["quality"][name] for record in records])
        for name in first["quality"]
    }
    entry["quality"] = {name: found.mean for name, found in quality.items()}
    entry["quality_std"] = {name: found.spread for name, found in quality.items()}
    entry["standard_error"] = {name: found.stderr for name, found in quality.items()}
    entry["per_seed"] = [
        {key: record[key] for key in ("seed", "quality", "seconds", "final_loss")}
        for record in records
    ]
    del entry["best_validation"]
    return entry
