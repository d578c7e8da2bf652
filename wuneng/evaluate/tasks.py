"""From the names a user gives to the lm-evaluation-harness tasks that are run.

The harness' full index parses every task file it ships, which takes from five to fifteen seconds;
the directories of the common suite take a tenth of one. So the common ones are indexed first, and
all of them only when a name is not among them but is a value in some task file: to look through the
files without parsing them takes about a second, so a misspelt name is refused at once.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wuneng.errors import TaskError, reason
from wuneng.evaluate.own_task_files import build_errors, own_file, unreadable_files
from wuneng.evaluate.suite import MEMBERS, SUITE

__all__ = [
    "ALIASES",
    "QUESTIONS",
    "REASONING",
    "SYNTHETIC",
    "VALIDATION",
    "TaskSelection",
    "common_directories",
    "expand_aliases",
    "select_tasks",
]

REASONING = (
    "arc_easy",
    "arc_challenge",
    "hellaswag",
    "piqa",
    "winogrande",
    "openbookqa",
    "boolq",
    "sciq",
    "lambada_openai",
)
ALIASES: dict[str, tuple[str, ...]] = {
    "arc": ("arc_easy", "arc_challenge"),
    "obqa": ("openbookqa",),
    "lambada": ("lambada_openai",),
    "reasoning": REASONING,
}
# Not a harness task: the validation split of the text recipe that a run was trained from.
VALIDATION = "validation"
# Nor are these: the synthetic tasks that a run was trained on.
SYNTHETIC = "synthetic"
# Nor these: the questions of .jsonl files of one's own.
QUESTIONS = "questions"

_COMMON_DIRECTORIES = (
    "arc",
    "hellaswag",
    "piqa",
    "winogrande",
    "openbookqa",
    "super_glue/boolq",
    "super_glue/copa",
    "sciq",
    "lambada",
    "gsm8k",
    "mmlu/default",
    "ruler",
    "babilong",
)


# Of the files beside the tasks' definitions, which may have any name.
_NOT_TASK_FILES = (".py", ".pyc", ".md", ".json", ".jsonl", ".csv", ".tsv", ".sh", ".txt", ".jpg")
#: A word, plain or quoted, that is all of a value, of a list's item or of a line.
_VALUE = re.compile(
    rb"(?:^|[-:\[,{])[ \t]*[\"']?([^\s\"'\[\]{},#:]+)[\"']?[ \t]*(?=[,\]}#\r]|$)", re.MULTILINE
)
_DEFINITION = re.compile(rb"^(?:task|group|tag):[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class TaskSelection:
    """One name as asked for, and the harness tasks it stands for.

    Attributes:
        name: a task, a group or a tag, after aliases were expanded.
        leaves: the tasks that are run.
        pool: whether the leaves' items are reported together under `name` as well (groups whose
            score weighs every item alike, such as MMLU).
    """

    name: str
    leaves: tuple[str, ...]
    pool: bool = False


def expand_aliases(names: Sequence[str]) -> list[str]:
    """Names with aliases replaced and repetitions dropped, in the order given."""
    expanded: dict[str, None] = {}
    for name in names:
        for task in ALIASES.get(name, (name,)):
            expanded[task] = None
    return list(expanded)


def common_directories() -> list[Path]:
    """The harness' own directories of the common suite."""
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    return [root / directory for directory in _COMMON_DIRECTORIES]


def select_tasks(
    names: Sequence[str],
    *,
    include_path: Path | None = None,
    metadata: Mapping[str, Any] | None = None,
    on_full_index: Callable[[], None] = lambda: None,
    none_is_fine: bool = False,
) -> tuple[list[TaskSelection], Any]:
    """Look every name up.

    Args:
        names: tasks, groups, tags and aliases, without the validation pseudo-task.
        include_path: a directory of task files that override the harness' own.
        metadata: what tasks that make their items are told, such as the tokenizer.
        on_full_index: called before the slow index of all tasks is built.
        none_is_fine: no name at all is no mistake; others were given elsewhere.

    Returns:
        What was selected, and the `TaskManager` that knows it.

    Raises:
        TaskError: no names, or a name that no task has, with near names.
    """
    wanted = expand_aliases([name for name in names if name])
    if not wanted and not none_is_fine:
        raise TaskError("--tasks: no task given. Try --tasks reasoning.")
    if include_path is not None and not include_path.is_dir():
        raise TaskError(f"--include-path: {include_path} is not a directory.")
    extra = [include_path] if include_path is not None else []
    given = dict(metadata or {})
    manager = _manager(
        include_defaults=False, include_path=common_directories() + extra, metadata=given
    )
    rare = [name for name in wanted if name not in manager.task_index]
    if rare:
        values, defined = _scan_task_files()
        for name in rare:
            if name not in values:
                unknown = _unknown(name, [*manager.all_tasks, *sorted(defined)])
                raise TaskError(unknown + unreadable_files(include_path))
        on_full_index()
        manager = _manager(include_defaults=True, include_path=extra, metadata=given)
    for name in wanted:
        if name not in manager.task_index:
            raise TaskError(_unknown(name, manager.all_tasks) + unreadable_files(include_path))
    selections = []
    for name in wanted:
        with build_errors(name, own_file(manager.task_index[name], include_path)):
            selections.append(_select(name, manager.task_index))
    return selections, manager


def _manager(*, include_path: Sequence[Path], **arguments: Any) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=include_path, **arguments)
    except Exception as error:  # the harness' own files are in order
        raise TaskError(
            f"--include-path: a task file cannot be read: {type(error).__name__}: {reason(error)}"
        ) from error


def _scan_task_files() -> tuple[set[str], set[str]]:
    """Every word that is a value in the harness' task files, and most of the names defined there.

    What is no value is no task: a name there is one word, plain or quoted, on the line of its key
    or of its dash, which a test holds every task of the harness to. A value may be anything.
    """
    import lm_eval.tasks

    values: set[bytes] = set()
    defined: set[bytes] = set()
    for directory, _, files in os.walk(Path(lm_eval.tasks.__file__).parent):
        for file in files:
            if file.endswith(_NOT_TASK_FILES):
                continue
            text = Path(directory, file).read_bytes()
            values.update(_VALUE.findall(text))
            defined.update(_DEFINITION.findall(text))
    return _as_text(values), _as_text(defined)


def _as_text(names: set[bytes]) -> set[str]:
    return {name.decode("utf-8", "replace") for name in names}


def _unknown(name: str, known: Sequence[str]) -> str:
    ours = (*ALIASES, VALIDATION, SYNTHETIC, QUESTIONS, SUITE, *MEMBERS)
    candidates = {task.lower().replace("-", "_"): task for task in (*known, *ours)}
    near = difflib.get_close_matches(name.lower().replace("-", "_"), candidates, n=3, cutoff=0.6)
    hint = f" Did you mean {', '.join(repr(candidates[n]) for n in near)}?" if near else ""
    return f"--tasks: {name!r} is not a known evaluation task.{hint}"


def _select(name: str, index: dict[str, Any]) -> TaskSelection:
    leaves = tuple(dict.fromkeys(_leaves(name, index)))
    if not leaves:
        raise TaskError(f"--tasks: {name!r} contains no task.")
    config = index[name].cfg or {}
    metrics = config.get("aggregate_metric_list") if "group" in config else None
    listed = metrics if isinstance(metrics, list) else [metrics] if metrics else []
    by_size = all(metric.get("weight_by_size", True) for metric in listed)
    return TaskSelection(name, leaves, pool=bool(listed) and by_size and len(leaves) > 1)


def _leaves(name: str, index: dict[str, Any]) -> Iterator[str]:
    """The tasks under a name; a group's inline task definitions are not supported."""
    entry = index.get(name)
    if entry is None:
        return
    members: list[Any] = []
    if entry.kind.name == "GROUP":
        members = (entry.cfg or {}).get("task") or []
    elif entry.kind.name == "TAG":
        members = sorted(entry.tags)
    else:
        yield name
    for member in [members] if isinstance(members, str) else members:
        if isinstance(member, dict):
            member = member.get("task") or member.get("group")
        if isinstance(member, str):
            yield from _leaves(member, index)
        else:
            raise TaskError(f"--tasks: {name!r} defines tasks of its own, which is not supported.")
