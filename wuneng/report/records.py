"""What the directory of a run, an evaluation or a benchmark holds: read, never written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wuneng.errors import DataError, InputError, WuNengError, file_errors, nearest
from wuneng.records import RUNS_ROOT, RunDirectory, arm_roles, read_jsonl, read_self_sealed, verify

__all__ = ["Records", "read_family", "read_records", "runs_below"]

_BENCH, _CONTROLS, _RESULTS = "bench.json", "controls.json", "results.json"


@dataclass(frozen=True)
class Records:
    """Everything that is known of one directory; what is not there is None or empty.

    Attributes:
        metrics: arm, then seed, to the rows of metrics.jsonl; seed 0 where none is recorded.
        evaluations: name of the file (``eval.json``, ``eval-state-zero.json``) to its content.
        recipe: as it was resolved.
        lent: benchmarks of the same models in other directories of the report, with their names.
        main, baseline: arms, by the recipe's roles.
        study, sweep: results.json of either, which has runs below it.
        primary: the figure that decides, where a study says so.
        smallest_effect: that matters, as a share of the main arm's figure, likewise.
    """

    path: Path
    name: str
    results: Mapping[str, Any] | None = None
    recipe: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] | None = None
    metrics: Mapping[str, Mapping[int, list[dict[str, Any]]]] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    controls: Mapping[str, Any] | None = None
    bench: Mapping[str, Any] | None = None
    lent: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    main: str | None = None
    baseline: str | None = None
    study: Mapping[str, Any] | None = None
    sweep: Mapping[str, Any] | None = None
    primary: str | None = None
    smallest_effect: float | None = None

    @property
    def arms(self) -> Mapping[str, Mapping[str, Any]]:
        """The arms of results.json; none before the run is finished."""
        return {} if self.results is None else self.results["arms"]


def read_family(place: Path, *, check: bool = True, runs_root: Path = RUNS_ROOT) -> list[Records]:
    """The records of a directory and, of a study, of the comparison at each rung below it.
    Arguments and errors as `read_records`."""
    parent = read_records(place, check=check, runs_root=runs_root)
    if parent.study is None:
        return [parent]
    below = []
    with file_errors(f"{parent.path / _RESULTS}: not a study's results", DataError):
        directories = [parent.path / str(rung["directory"]) for rung in parent.study["rungs"]]
        told: dict[str, Any] = {
            "primary": str(parent.study["primary"]),
            "smallest_effect": float(parent.study["smallest_effect"]),
        }
    for directory in directories:
        inside = directory.resolve().is_relative_to(parent.path.resolve())
        if inside and directory.is_dir() and any(directory.glob("*.json")):
            below.append(replace(read_records(directory, check=check), **told))
    return [parent, *below]


def runs_below(records: Records) -> list[Path]:
    """The directories of the runs that a study tuned with, or of the points of a sweep; none where
    the directory is neither's."""
    if records.study is None and records.sweep is None:
        return []
    top = records.path
    return sorted(file.parent for file in top.rglob("recipe.yaml") if file.parent != top)


def read_records(place: Path, *, check: bool = True, runs_root: Path = RUNS_ROOT) -> Records:
    """The records of a directory.

    Args:
        place: the directory of a run, an evaluation or a benchmark, or its name in ``runs_root``.
        check: compare sealed files with their checksums.

    Raises:
        InputError: it is no directory, or has no record in it.
        DataError: a record is not one.
        DamagedError: a sealed record is not what was written.
    """
    path = _existing(place, runs_root)
    run = RunDirectory(path)
    if check:
        verify(path, [run.results.name, run.recipe.name])
    results = _object(run.results)
    kind = None if results is None else _kind(run.results, results)
    evaluations = {
        file.name: found
        for file in sorted(path.glob("eval*.json"))
        if (found := _object(file, "tasks", check=check)) is not None
    }
    controls = _object(path / _CONTROLS, "tasks", check=check)
    bench = _object(path / _BENCH, "rows", check=check)
    metrics = _metrics(run, check=check)
    if kind is None and not any((evaluations, controls, bench, metrics)):
        raise InputError(
            f"{path} holds no record: expected {_RESULTS} or metrics.jsonl (a run), eval.json (an "
            f"evaluation), {_CONTROLS} or {_BENCH} (a benchmark)"
        )
    main, baseline = _roles(run)
    return Records(
        path=path,
        name=str((results or {}).get("name") or path.resolve().name),
        results=results if kind == "run" else None,
        study=results if kind == "study" else None,
        sweep=results if kind == "sweep" else None,
        recipe=_recipe(run),
        environment=_object(run.environment) or _environment_of(evaluations, controls, bench),
        metrics=metrics,
        evaluations=evaluations,
        controls=controls,
        bench=bench,
        main=main,
        baseline=baseline,
    )


def _kind(file: Path, results: Mapping[str, Any]) -> str:
    """ "run", "study" or "sweep". DataError where it is none of them."""
    kind = str(results.get("kind", "run"))
    wanted = {"run": "arms", "study": "rungs", "sweep": "points"}.get(kind)
    if wanted is None or not isinstance(results.get(wanted), list | dict):
        raise DataError(
            f"{file}: not the record that its name says: it has no {wanted or 'known kind'}"
        )
    return kind


def _existing(place: Path, runs_root: Path) -> Path:
    for candidate in (place, runs_root / place):
        if candidate.is_dir():
            return candidate
    if place == runs_root / "latest":
        raise InputError(
            f"no run was given and there is no {place}; train one first, or name a directory"
        )
    if place.exists():
        raise InputError(f"{place} is a file, expected the directory of a run, eval or bench")
    parents = [parent for parent in (place.parent, runs_root) if parent.is_dir()]
    near = nearest(place.name, (p.name for d in parents for p in d.iterdir() if p.is_dir()))
    raise InputError(f"{place} does not exist (nor does {runs_root / place}).{near}")


def _object(file: Path, wanted: str | None = None, *, check: bool = False) -> dict[str, Any] | None:
    """A JSON object, None where there is no such file. DataError where it is something else;
    with ``check`` DamagedError where it is not what its own checksum says."""
    if not file.is_file():
        return None
    found = read_self_sealed(file, check=check)
    if not isinstance(found, dict):
        raise DataError(f"{file}: expected an object, got {type(found).__name__}")
    if wanted is not None and not isinstance(found.get(wanted), list | dict):
        raise DataError(f"{file}: not the record that its name says: it has no {wanted}")
    return found


def _metrics(run: RunDirectory, *, check: bool) -> dict[str, dict[int, list[dict[str, Any]]]]:
    """Of every arm and seed that has begun, arms in the recipe's order where there is one; with
    ``check`` DamagedError where those of a finished one are not what was written."""
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    order = _arm_order(run)
    files = [*run.path.glob("*/metrics.jsonl"), *run.path.glob("*/seed-*/metrics.jsonl")]
    for file in sorted(files):
        arm = file.relative_to(run.path).parts[0]
        if check:
            verify(file.parent, [file.name])
        rows = read_jsonl(file)
        seeds = {row["seed"] for row in rows if isinstance(row.get("seed"), int)}
        found.setdefault(arm, {})[min(seeds, default=0)] = rows
    return dict(sorted(found.items(), key=lambda one: order.get(one[0], len(order))))


def _recipe(run: RunDirectory) -> Mapping[str, Any] | None:
    # Through the recipe's own reader, which has bounds.
    from wuneng.recipe.source import read_yaml

    if not run.recipe.is_file():
        return None
    found = read_yaml(run.recipe).data
    return found if isinstance(found, Mapping) else None


def _arm_order(run: RunDirectory) -> dict[str, int]:
    recipe = _recipe(run)
    arms = (recipe or {}).get("arms")
    return {str(arm): place for place, arm in enumerate(arms)} if arms else {}


def _roles(run: RunDirectory) -> tuple[str | None, str | None]:
    try:
        roles = arm_roles(run)
    except WuNengError:  # no run, or one whose recipe is not a run's
        return None, None
    return roles.main, roles.baseline


def _environment_of(
    evaluations: Mapping[str, Mapping[str, Any]], *others: Mapping[str, Any] | None
) -> Mapping[str, Any] | None:
    records = [*evaluations.values(), *(one for one in others if one is not None)]
    found = (record.get("environment") for record in records)
    return next((one for one in found if isinstance(one, Mapping)), None)
