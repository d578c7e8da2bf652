"""Harness task objects, with their data, before any model is loaded.

Loading a task loads its data set, so whatever is missing shows here: in seconds, not after the
weights have been read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wuneng.errors import TaskError
from wuneng.evaluate.local_data import LocalDirectory, LocalTask
from wuneng.evaluate.long_context import (
    generated,
    interleaved,
    length_metadata,
    local_ruler,
    seeded,
    too_short,
)
from wuneng.evaluate.own_questions import OwnQuestions, question_tasks
from wuneng.evaluate.own_task_code import refuse_code, sandboxed_templates
from wuneng.evaluate.own_task_files import build_errors, own_file
from wuneng.evaluate.reader import Reader
from wuneng.evaluate.suite import NEEDLE, NEEDLE_LENGTHS, suite_members, write_member
from wuneng.evaluate.task_objects import load_task
from wuneng.evaluate.tasks import QUESTIONS, TaskSelection, select_tasks
from wuneng.model.quiet import quiet_transformers
from wuneng.recipe import QuestionFields

__all__ = ["LoadedTasks", "load_tasks", "quiet_harness"]


@dataclass(frozen=True)
class LoadedTasks:
    """Tasks ready to be run.

    Attributes:
        selections: what was asked for, in order; with local data, groups hold only the tasks
            that the files cover.
        tasks: harness task objects by name.
        local: where each task's items come from, when local files supply them.
        notes: remarks that belong beside the results.
        files: the user's own task files (``--include-path``), by task.
        include_path: the directory that they lie in.
    """

    selections: list[TaskSelection]
    tasks: dict[str, Any]
    local: dict[str, LocalTask]
    notes: list[str]
    files: dict[str, Path] = field(default_factory=dict)
    include_path: Path | None = None


def load_tasks(
    names: Sequence[str],
    *,
    data_dir: Path | None = None,
    workspace: Path | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    reader: Reader | None = None,
    lengths: Sequence[int] | None = None,
    own: OwnQuestions | None = None,
    limit: int | None = None,
    on_full_index: Callable[[], None] = lambda: None,
) -> LoadedTasks:
    """Look the names up, find their data and build the task objects.

    Args:
        names: tasks, groups, tags and aliases, and members of `wuneng-suite`.
        data_dir: local files to read instead of the data sets; None for the data sets.
        workspace: where converted and generated items go; needed with `data_dir` and the suite.
        num_fewshot: examples before each question; None leaves each task's own number.
        include_path: a directory of task files, which override the harness' own.
        reader: whose tokenizer lengths are counted in; needed by tasks that make long texts.
        lengths: of those texts, in tokens; None leaves each task's own.
        limit: so many items of each task are wanted; RULER's needles are slow to hide.
        own: how the rows of `questions` are read; None with the usual names of fields.
        on_full_index: called before the slow index of all tasks is built.

    Raises:
        TaskError: an unknown name, a local file that is missing, or a data set that is neither
            cached nor can be fetched.
        DataError: a local file with a bad row.
    """
    ours = [TaskSelection(name, suite_members(name)) for name in names if suite_members(name)]
    others = [name for name in names if not suite_members(name) and name != QUESTIONS]
    if workspace is None and (data_dir is not None or len(others) < len(names)):
        raise ValueError("data_dir, questions and the suite need a workspace")
    with quiet_harness():
        selections, manager = select_tasks(
            others,
            include_path=include_path,
            metadata=length_metadata(reader, lengths, others),
            on_full_index=on_full_index,
            none_is_fine=len(others) < len(names),
        )
        given = (data_dir, workspace, num_fewshot, reader, lengths, limit)
        loading = _Loading(manager, *given, include_path=include_path)
        if data_dir is not None:
            selections = loading.repoint(selections)
        loading.write_suite(ours)
        if QUESTIONS in names:
            ours.append(loading.write_questions(own or OwnQuestions(QuestionFields())))
        with loading.sources(selections), sandboxed_templates(include_path):
            return loading.load([*selections, *ours])


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


@dataclass
class _Loading:
    """What is given, and what has been found so far."""

    manager: Any
    data_dir: Path | None
    workspace: Path | None
    num_fewshot: int | None
    reader: Reader | None
    lengths: Sequence[int] | None
    limit: int | None
    include_path: Path | None = None
    local: dict[str, LocalTask] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def repoint(self, selections: Sequence[TaskSelection]) -> list[TaskSelection]:
        """Take the items of all tasks from the local files, but of those that make their own."""
        assert self.data_dir is not None
        assert self.workspace is not None
        if all(self._generated(leaf) for leaf in _all_leaves(selections)):
            return list(selections)
        directory = LocalDirectory(self.data_dir, self.workspace)
        found = [_covered(selection, directory, self.notes) for selection in selections]
        for leaf in _all_leaves(found):
            if not self._generated(leaf):
                entry = self.manager.task_index[leaf]
                file = Path(entry.yaml_path)
                self.local[leaf] = directory.repoint(leaf, entry.cfg or {}, file, self.num_fewshot)
        return found

    def write_suite(self, selections: Sequence[TaskSelection]) -> None:
        """Generate the items of members of the suite."""
        for leaf in _all_leaves(selections):
            assert self.workspace is not None
            lengths: Sequence[int] | None = self.lengths
            if leaf == NEEDLE and self.reader is None:
                raise TaskError(f"--tasks {NEEDLE}: lengths are counted in tokens of a tokenizer")
            if leaf == NEEDLE and self.reader is not None and lengths is None:
                lengths = self.reader.fitting(NEEDLE_LENGTHS)
                self.notes.append(
                    f"{NEEDLE}: {', '.join(f'{n:,}' for n in lengths)} tokens, which the context "
                    "of MODEL holds; --lengths asks for others."
                )
            count = self.reader.count if self.reader else len
            self.local[leaf] = write_member(
                leaf, self.workspace, count_tokens=count, lengths=lengths
            )

    def write_questions(self, own: OwnQuestions) -> TaskSelection:
        """One task for each file of one's own questions."""
        assert self.workspace is not None
        tasks = question_tasks(own, self.data_dir, self.workspace, self.num_fewshot)
        self.local |= {task.task: task for task in tasks}
        return TaskSelection(QUESTIONS, tuple(task.task for task in tasks))

    def sources(self, selections: Sequence[TaskSelection]) -> AbstractContextManager[None]:
        """Open while tasks are built: what RULER's read."""
        files = (self.manager.task_index[leaf].yaml_path for leaf in _all_leaves(selections))
        if any(Path(file).parent.name == "ruler" for file in files if file):
            return local_ruler(self.reader, self.data_dir, self.lengths, self.limit)
        return nullcontext()

    def load(self, selections: Sequence[TaskSelection]) -> LoadedTasks:
        """The task objects; a group of tasks that make their items goes without those that fail."""
        tasks: dict[str, Any] = {}
        kept = []
        for selection in selections:
            missing: dict[str, TaskError] = {}
            for leaf in selection.leaves:
                try:
                    tasks[leaf] = tasks.get(leaf) or self._task(leaf)
                except TaskError as error:
                    if not self._generated(leaf) or len(selection.leaves) == 1:
                        raise
                    missing[leaf] = error
            leaves = tuple(leaf for leaf in selection.leaves if leaf not in missing)
            if not leaves:
                raise next(iter(missing.values()))
            self.notes += [f"{selection.name}: left out: {error}" for error in missing.values()]
            kept.append(TaskSelection(selection.name, leaves, selection.pool))
        return LoadedTasks(kept, tasks, self.local, self.notes, self.files, self.include_path)

    def _task(self, leaf: str) -> Any:
        entry = self.manager.task_index.get(leaf)
        config = (entry.cfg or {}) if entry else {}
        if why := too_short(leaf, self.reader, self.lengths):
            raise TaskError(f"task {leaf!r}: {why}, as MODEL's tokenizer counts them")
        own = own_file(entry, self.include_path)
        if own is not None:
            refuse_code(leaf, own, config)
            self.files[leaf] = own
        with seeded() if generated(config) else nullcontext(), build_errors(leaf, own):
            task = load_task(leaf, config, self.local.get(leaf), self.manager, self.num_fewshot)
        if generated(config):
            interleaved(task)
        return task

    def _generated(self, leaf: str) -> bool:
        entry = self.manager.task_index.get(leaf)
        return entry is not None and generated(entry.cfg or {})


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
