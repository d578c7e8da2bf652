"""Which two models an evaluation means, where the user leaves something out.

Nothing here imports torch until both are found: a slip in a name is told at once.
"""

from __future__ import annotations

from pathlib import Path

from wuneng.errors import ModelError, TaskError
from wuneng.recipe import load_recipe
from wuneng.records import RUNS_ROOT, arm_names, arm_roles, find_model, run_of

__all__ = ["NO_BASELINE", "choose_models", "default_directory", "default_tasks"]

#: Said instead of a baseline to compare with nothing.
NO_BASELINE = "none"


def choose_models(
    model: str | None,
    baseline: str | None,
    state: str = "keep",
    runs_root: Path = RUNS_ROOT,
    *,
    arm: str | None = None,
) -> tuple[Path, Path | None, str | None]:
    """The transformers directories of model and baseline, and a remark on what was chosen.

    Args:
        model: as the user gives it; None is the latest run.
        baseline: the same, or an arm of the model's run, or "none". None: for a run (not one of
            its arms) its arm "mha" or, of an upgrade, the untouched source; with a state control
            the model itself, untouched.
        arm: of the run that ``model`` is; None is its trained arm with state heads.

    Raises:
        ModelError: nothing usable is there.
    """
    path = find_model(model, arm=arm, runs_root=runs_root)
    if baseline == NO_BASELINE:
        return path, None, None
    if baseline is not None:
        return path, _given_baseline(path, baseline, runs_root), None
    if state != "keep":
        return path, path, "compared with the same model, its state untouched"
    run = run_of(path)
    if run is None or not (model is None or _is_run(Path(model), runs_root)):
        return path, None, None
    other_arm = arm_roles(run).baseline
    if other_arm is None:
        return path, None, None
    try:
        other = find_model(run.path, arm=other_arm, runs_root=runs_root)
    except ModelError:
        return path, None, None
    if other.resolve() == path.resolve():
        return path, None, None
    return path, other, f"compared with the run's arm {other_arm} (--baseline changes that)"


def default_tasks(model: Path) -> list[str]:
    """What a model is scored on where no task is named: the held-out data of its run's recipe.

    Raises:
        TaskError: it belongs to no run.
        RecipeError: the recipe cannot be read.
    """
    from wuneng.evaluate.tasks import SYNTHETIC, VALIDATION

    run = run_of(model)
    if run is None:
        raise TaskError(
            f"--tasks: {model} belongs to no run, so it has no held-out data of its own; name "
            "tasks, as in --tasks arc,hellaswag"
        )
    return [SYNTHETIC if load_recipe(run.recipe).data.kind == "synthetic" else VALIDATION]


def default_directory(model: Path, runs_root: Path = RUNS_ROOT) -> Path:
    """Where an evaluation's results go: into the model's run, else ``runs/eval/<model>``."""
    run = run_of(model)
    return run.path if run is not None else runs_root / "eval" / model.resolve().name


def _given_baseline(model: Path, baseline: str, runs_root: Path) -> Path:
    run = run_of(model)
    if run is not None and baseline in arm_names(run) and not Path(baseline).is_dir():
        return find_model(run.path, arm=baseline, runs_root=runs_root)
    return find_model(baseline, runs_root=runs_root)


def _is_run(place: Path, runs_root: Path) -> bool:
    found = next((p for p in (place, runs_root / place) if p.is_dir()), place)
    return (found / "recipe.yaml").is_file()
