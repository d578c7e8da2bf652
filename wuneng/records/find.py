"""Which directory a user means by MODEL: a model, an arm, a run, or nothing at all."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote

from wuneng.errors import DataError, ModelError, nearest, reason, shortened
from wuneng.records.checksums import CHECKSUMS
from wuneng.records.files import read_json
from wuneng.records.roles import arm_names, arm_roles, is_of_several
from wuneng.records.runs import RUNS_ROOT, RunDirectory

__all__ = ["find_model", "find_source", "may_be_on_the_hub", "run_of"]


def find_model(
    path: str | Path | None, arm: str | None = None, runs_root: Path = RUNS_ROOT
) -> Path:
    """The transformers directory that ``path`` stands for.

    Args:
        path: a directory with a config.json; an arm's directory; a run directory (or its name
            under ``runs_root``), which stands for its first trained arm with
            state heads; or None for the latest run.
        arm: the arm of a run directory.

    Raises:
        ModelError: nothing usable is there; says what was looked for.
    """
    place = _latest(Path(runs_root)) if path is None else _existing(Path(path), Path(runs_root))
    if (place / "recipe.yaml").is_file():
        try:
            return _in_run(RunDirectory(place), arm)
        except ModelError as error:
            if path is not None:
                raise
            raise ModelError(f"{error}. {_latest_is_meant(place, Path(runs_root))}") from None
    if arm is not None:
        raise ModelError(
            f"{place} is not a run directory (no recipe.yaml), so it has no arm '{arm}'"
        )
    if (place / "config.json").is_file():
        return place
    found = _in_arm(place)
    if found is None:
        raise ModelError(
            f"no model in {place}: expected config.json (a transformers directory), model/ (an "
            f"arm) or recipe.yaml (a run){_training_goes_on(place)}"
            f"{''.join(map(_convert_first, sorted(place.glob('*.pth'))[:1]))}"
        )
    return found


def find_source(name: str) -> None:
    """Refuse at once a model directory that is not there; files, and what may be a name on the hub,
    are for who reads them.

    Raises:
        ModelError: as :func:`find_model`.
    """
    try:
        there = Path(name).exists()
    except OSError as error:  # a name too long, no access
        raise ModelError(f"{shortened(name, 200)}: {reason(error)}") from None
    if not there and not may_be_on_the_hub(name):
        find_model(name)


def may_be_on_the_hub(name: str) -> bool:
    """Whether ``owner/name`` is no slip: in a directory that exists, what does not exist is one."""
    path = Path(name)
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None
    return is_name and not (path.exists() or path.parent.is_dir())


def run_of(path: Path) -> RunDirectory | None:
    """The run that a model directory ``<run>/<arm>[/seed-<n>]/model`` belongs to, if any."""
    path = path.resolve()
    for parent in path.parents[1:3]:
        if path.name == "model" and (parent / "recipe.yaml").is_file():
            return RunDirectory(parent)
    return None


def _latest_is_meant(place: Path, runs_root: Path) -> str:
    """Which run was taken for want of a name, and which finished one could be named instead."""
    finished = [p.parent for p in runs_root.glob("*/results.json") if not p.parent.is_symlink()]
    finished = [p for p in finished if p.resolve() != place]
    text = "No model was named, so the latest run was meant"
    if not finished:
        return text
    newest = max(finished, key=lambda p: (p / "results.json").stat().st_mtime)
    return f"{text}; the last that is finished is {newest}"


def _latest(runs_root: Path) -> Path:
    latest = runs_root / "latest"
    if not latest.exists():
        raise ModelError(
            f"no model was given and there is no {latest}; train one first, as in "
            "`wuneng train recipes/quickstart.yaml`, or name a directory"
        )
    return latest.resolve()


def _existing(path: Path, runs_root: Path) -> Path:
    try:
        for candidate in (path, runs_root / path):
            if candidate.is_dir():
                return candidate
    except OSError as error:  # a name too long, no access
        raise ModelError(f"model {shortened(str(path), 200)}: {reason(error)}") from None
    if path.exists():
        raise ModelError(f"model {path} is a file, expected a directory{_convert_first(path)}")
    parents = [d for d in (path.parent, runs_root) if d.is_dir()]
    near = nearest(path.name, (p.name for d in parents for p in d.iterdir() if p.is_dir()))
    other = runs_root / path
    also = "" if other == path else f" (nor does {other})"
    raise ModelError(f"model {path} does not exist{also}.{near}")


def _convert_first(file: Path) -> str:
    """What to do about a checkpoint that is no model directory yet."""
    if file.suffix != ".pth":
        return ""
    source, made = quote(str(file)), quote(file.stem)
    return (
        f"; an RWKV-7 .pth is converted first: `wuneng convert {source} {made} --tokenizer "
        f"bytes` (or world, or the path of its vocabulary), then name {made}"
    )


def _in_run(run: RunDirectory, arm: str | None) -> Path:
    arms = arm_names(run)
    if arm is not None and arm not in arms:
        raise ModelError(f"{run.path} has no arm '{arm}': {', '.join(arms)}.{nearest(arm, arms)}")
    name = arm or arm_roles(run).main
    if is_of_several(run):
        return _in_run(_chosen_run(run, name), name)
    chosen = run.arm(name).path
    found = _in_arm(chosen)
    if found is None:
        raise ModelError(
            f"arm '{chosen.name}' of {run.path} has no trained model yet (no {chosen / 'model'})"
            f"{_training_goes_on(chosen)}"
        )
    return found


def _chosen_run(run: RunDirectory, arm: str) -> RunDirectory:
    """Of the runs of a sweep or study, the one that has the best model of ``arm``."""
    below = sorted(str(p.parent.relative_to(run.path)) for p in run.path.glob("**/recipe.yaml"))
    below = [name for name in below if name != "."]
    try:
        models = read_json(run.results).get("models", {}) if run.results.exists() else {}
    except (DataError, AttributeError) as error:
        raise ModelError(f"{run.results} does not say which run is meant: {error}") from None
    if models.get(arm) not in below:
        state = "names no run for" if run.results.exists() else "is not finished, and has no best"
        raise ModelError(
            f"{run.path} is a sweep or study of several runs; it {state} arm '{arm}'. Name one of "
            f"them, as {run.path / below[0] if below else 'they are trained'}"
        )
    return RunDirectory(run.path / models[arm])


def _in_arm(place: Path) -> Path | None:
    """``model/`` of an arm, or of its lowest seed."""
    seeds = [s for s in place.glob("seed-*") if re.fullmatch(r"seed-\d+", s.name)]
    seeds.sort(key=lambda seed: int(seed.name.removeprefix("seed-")))
    for directory in (place, *seeds):
        # A model of ours without its config.json is damaged, not absent: its loader says so.
        if any((directory / "model" / name).is_file() for name in ("config.json", CHECKSUMS)):
            return directory / "model"
    return None


def _training_goes_on(place: Path) -> str:
    """What to do about an arm that was stopped before its end."""
    if any(any(place.glob(f"{seed}checkpoints/step-*")) for seed in ("", "seed-*/")):
        return "; its training was stopped: `wuneng train` of the same recipe resumes it"
    return ""
