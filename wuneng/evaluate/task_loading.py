"""Harness task objects, with their data, before any model is loaded.

Loading a task loads its data set, so whatever is missing shows here: in seconds, not after the
weights have been read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.errors import TaskError
from wuneng.evaluate.local_data import LocalDirectory, LocalTask
from wuneng.evaluate.tasks import TaskSelection, select_tasks
from wuneng.model.quiet import quiet_transformers

__all__ = ["LoadedTasks", "check_examples", "load_tasks", "quiet_harness"]


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks ready to be run.

    Attributes:
        selections: what was asked for, in order; with local data, groups hold only the tasks
            that the files cover.
        tasks: harness task objects by name.
        local: where each task's items come from, when local files supply them.
        notes: remarks that belong beside the results.
    """

    selections: list[TaskSelection]
    tasks: dict[str, Any]
    local: dict[str, LocalTask]
    notes: list[str]


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    workspace: Path | None = None,
    num_fewshot: int | None = None,
    on_full_index: Callable[[], None] = lambda: None,
) -> LoadedTasks:
    """Look the names up, find their data and build the task objects.

    Args:
        names: tasks, groups, tags and aliases.
        data_dir: local files to read instead of the data sets; None for the data sets.
        workspace: where converted local files go; needed with `data_dir`.
        num_fewshot: examples before each question; None leaves each task's own number.
        on_full_index: called before the slow index of all tasks is built.

    Raises:
        TaskError: an unknown name, a local file that is missing, or a data set that is neither
            cached nor can be fetched.
        DataError: a local file with a bad row.
    """
    with quiet_harness():
        selections, manager = select_tasks(names, on_full_index=on_full_index)
        local: dict[str, LocalTask] = {}
        notes: list[str] = []
        if data_dir is not None:
            if workspace is None:
                raise ValueError("data_dir needs a workspace")
            directory = LocalDirectory(data_dir, workspace)
            selections = [_covered(selection, directory, notes) for selection in selections]
            for leaf in _all_leaves(selections):
                local[leaf] = _repoint(leaf, directory, manager, num_fewshot)
        tasks = {
            leaf: _load(leaf, local.get(leaf), manager, num_fewshot)
            for leaf in _all_leaves(selections)
        }
    return LoadedTasks(selections, tasks, local, notes)


@contextmanager
def quiet_harness() -> Iterator[None]:
    """Silence the harness', datasets' and transformers' log lines and the harness' own bars."""
    import datasets
    import lm_eval.api.task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    request_bar = lm_eval.api.task.tqdm
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # Building requests shows a bar that no argument turns off.
    lm_eval.api.task.tqdm = lambda items, **_: items
    try:
        with quiet_transformers():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        lm_eval.api.task.tqdm = request_bar


def _all_leaves(selections: Sequence[TaskSelection]) -> list[str]:
    return list(dict.fromkeys(leaf for selection in selections for leaf in selection.leaves))


def _covered(
    selection: TaskSelection, directory: LocalDirectory, notes: list[str]
) -> TaskSelection:
    """A group with only the tasks that the local files have items for."""
    if len(selection.leaves) == 1:
        return selection
    present = directory.tasks_of_group(selection.leaves)
    if not present:
        return selection  # the first leaf's own message says what is missing
    if len(present) < len(selection.leaves):
        notes.append(
            f"{selection.name}: {len(present)} of its {len(selection.leaves)} tasks have items "
            f"under {directory.root}."
        )
    return TaskSelection(selection.name, present, selection.pool)


def _repoint(
    leaf: str, directory: LocalDirectory, manager: Any, num_fewshot: int | None
) -> LocalTask:
    entry = manager.task_index[leaf]
    return directory.repoint(leaf, entry.cfg or {}, Path(entry.yaml_path), num_fewshot)


def _load(leaf: str, local: LocalTask | None, manager: Any, num_fewshot: int | None) -> Any:
    entry: Mapping[str, Any] = manager.task_index[leaf].cfg or {}
    try:
        loaded = manager.load([str(local.task_file) if local else leaf])
    except ImportError as error:
        raise TaskError(f"task {leaf!r} needs a package that is not installed: {error}") from error
    except Exception as error:
        if local is not None or not _is_data_error(error):
            raise
        raise TaskError(_unavailable(leaf, entry, error)) from error
    task = next(iter(loaded["tasks"].values()))
    # The harness' rule: a task file that fixes zero examples is not overridden.
    fixed = task.get_config("num_fewshot")
    if num_fewshot is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=num_fewshot)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    check_examples(leaf, task, local)
    return task


def check_examples(leaf: str, task: Any, local: LocalTask | None) -> None:
    """TaskError where there are fewer solved examples than the task puts before a question."""
    shots = int(task.get_config("num_fewshot") or 0)
    sampler = getattr(task, "sampler", None)
    if not shots or sampler is None:
        return
    found = len(sampler.fewshot_docs())
    # Drawn from the questions themselves, one more is needed in place of the one that is asked.
    apart = task.fewshot_cfg.split != task.config.test_split
    if found - (not apart) < shots:
        where = f"{local.examples} has" if local and local.examples else "its data set has"
        raise TaskError(
            f"--num-fewshot: {leaf!r} puts {shots} solved examples before each question, and "
            f"{where} {found}{'' if apart else ' with the one that is asked'}. Pass "
            f"--num-fewshot {max(0, found - (not apart))} or fewer, or add some."
        )


def _is_data_error(error: Exception) -> bool:
    """Whether a task failed to build because its data set cannot be had.

    `datasets` reports an uncached set as a ConnectionError, FileNotFoundError, its own errors, or
    (cached under another configuration, offline) a ValueError; one that still consists of a
    script as a RuntimeError.
    """
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "datasets",
        "huggingface_hub",
        "httpx",
        "requests",
    ):
        return True
    text = str(error)
    return "Couldn't find cache" in text or "Dataset scripts are no longer supported" in text


def _unavailable(leaf: str, config: Mapping[str, Any], error: Exception) -> str:
    data_set = str(config.get("dataset_path", "its data set"))
    if config.get("dataset_name"):
        data_set += f" ({config['dataset_name']})"
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return (
        f"task {leaf!r} needs the data set {data_set}, which is not in the cache and could not be "
        f"fetched ({type(error).__name__}: {reason}). Two ways out: run once with a network "
        "connection (and HF_HUB_OFFLINE unset) so that it is cached, or give local files with "
        "--data-dir DIR."
    )
