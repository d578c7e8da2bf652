"""`--data-dir`: stock harness tasks on local files.

For each task asked for, the rows of the files that `local_files` recognises are written to a
temporary Parquet file in the layout that the stock task reads, and a task file is generated that
includes the stock one and changes nothing but where the data come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wuneng.errors import TaskError
from wuneng.evaluate.local_files import LocalFile, converted_rows, scan
from wuneng.evaluate.local_formats import Row, format_of_task

__all__ = ["LocalDirectory", "LocalTask", "write_parquet"]


@dataclass(frozen=True)
class LocalTask:
    """A task with a task file of our own; ``source`` says where its items come from."""

    task: str
    task_file: Path
    source: str
    split: str
    examples: Path | None = None
    """Where solved examples come from, if any are asked for."""


@dataclass
class LocalDirectory:
    """The evaluation files under one directory.

    Args:
        root: the directory given as ``--data-dir``.
        workspace: a directory for converted rows and generated task files, which lives as long
            as the tasks are used.

    Raises:
        TaskError: `root` is not a directory, or holds no file that is recognised.
        DataError: a file that cannot be read as JSON lines.
    """

    root: Path
    workspace: Path
    files: list[LocalFile] = field(init=False)
    unrecognised: list[Path] = field(init=False)
    _rows: dict[Path, dict[str, list[Row]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise TaskError(f"--data-dir: {self.root} is not a directory.")
        self.files, self.unrecognised = scan(self.root)
        if not self.files:
            raise TaskError(
                f"--data-dir: no evaluation file is recognised under {self.root}. Expected .jsonl "
                f"files of public test sets; {self._found()}."
            )

    def tasks_of_group(self, leaves: Sequence[str]) -> tuple[str, ...]:
        """Those of a group's tasks that the MMLU-like files here have rows for.

        A file that splits into many tasks may cover only some of them; then only those are run.
        """
        formats = {id(format_of_task(leaf)) for leaf in leaves}
        files = [file for file in self.files if id(file.format) in formats]
        present = {task for file in files for task in self._tasks_in(file)}
        return tuple(leaf for leaf in leaves if leaf in present)

    def repoint(
        self, task: str, stock: Mapping[str, Any], stock_file: Path, num_fewshot: int | None
    ) -> LocalTask:
        """Write the rows and the task file of one stock task.

        Args:
            task: its name.
            stock: its configuration, functions unresolved.
            stock_file: its file, which the generated one includes.
            num_fewshot: examples asked for; None leaves the stock task's number.

        Raises:
            TaskError: no file for it here, several for one split, or none to draw examples from.
            DataError: a row that does not fit the layout, with its file and line.
        """
        by_split = self._files_for(task)
        preferred = "test" if stock.get("test_split") else "validation"
        order = [preferred, "test", "validation", ""]
        evaluated = next((split for split in order if split in by_split), None)
        if evaluated is None:
            raise TaskError(self._missing(task))
        splits = {"evaluated": by_split[evaluated]}
        shots = stock.get("num_fewshot") if num_fewshot is None else num_fewshot
        fewshot = None
        if shots and stock.get("num_fewshot") != 0:
            fewshot = self._fewshot_split(task, stock, by_split, evaluated, int(shots))
            splits["fewshot"] = by_split[fewshot]
        file = self._write(task, stock_file, splits)
        examples = None if fewshot is None else by_split[fewshot].path
        source, split = str(by_split[evaluated].path), evaluated or "unnamed"
        return LocalTask(task, file, source, split, examples)

    def _tasks_in(self, file: LocalFile) -> list[str]:
        if any(name.endswith("*") for name in file.format.tasks):
            return list(self._converted(file))
        name = self._task_of({}, file)
        return [name] if name else []

    def _task_of(self, row: Row, file: LocalFile) -> str | None:
        """By the path below the directory; else by the directory's own name."""
        below = file.format.task_of(row, str(file.path.relative_to(self.root)))
        return below or file.format.task_of(row, self.root.resolve().name)

    def _files_for(self, task: str) -> dict[str, LocalFile]:
        known = format_of_task(task)
        if known is None:
            raise TaskError(
                f"--data-dir: {task!r} cannot be read from local files; evaluate it in a call "
                "without --data-dir. `wuneng eval --help` lists the tasks that can."
            )
        by_split: dict[str, LocalFile] = {}
        for file in self.files:
            if file.format is not known or task not in self._tasks_in(file):
                continue
            other = by_split.setdefault(file.split, file)
            if other is not file:
                raise TaskError(
                    f"--data-dir: two files give the {file.split or 'only'} split of {task!r}: "
                    f"{other.path} and {file.path}. Keep one."
                )
        return by_split

    def _missing(self, task: str) -> str:
        known = format_of_task(task)
        assert known is not None
        word = next((w for name, w in known.tasks.items() if name == task), "")
        fields = ", ".join(known.fields)
        named = f" whose path contains {word!r}" if word else ""
        return (
            f"--data-dir: no test or validation file for task {task!r} under {self.root}. Looked "
            f"for a .jsonl file{named} with the fields {fields}; {self._found()}."
        )

    def _found(self) -> str:
        found = [file.describe() for file in self.files]
        found += [f"{path.name} (not recognised)" for path in self.unrecognised]
        shown = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
        return f"found {shown or 'no .jsonl file'}"

    def _fewshot_split(
        self,
        task: str,
        stock: Mapping[str, Any],
        by_split: Mapping[str, LocalFile],
        evaluated: str,
        shots: int,
    ) -> str:
        wanted = [stock.get("fewshot_split"), "train", "dev", "validation"]
        for split in wanted:
            if split and split in by_split and split != evaluated:
                return str(split)
        first = wanted[0] or "train"
        raise TaskError(
            f"--num-fewshot: {task!r} needs {shots} examples, and {self.root} has no {first} file "
            "to take them from (the evaluated items are never used). Add one or pass "
            "--num-fewshot 0."
        )

    def _write(self, task: str, stock_file: Path, splits: Mapping[str, LocalFile]) -> Path:
        data_files = {}
        for split, file in splits.items():
            target = self.workspace / f"{task}-{split}.parquet"
            write_parquet(self._converted(file).get(task, []), target)
            data_files[split] = str(target)
        config = {
            "include": str(stock_file),
            "task": task,
            "tag": None,
            "dataset_path": "parquet",
            "dataset_name": None,
            # The copy that `datasets` makes goes with the workspace, not into the user's cache.
            "dataset_kwargs": {"data_files": data_files, "cache_dir": str(self.workspace / "hf")},
            "training_split": None,
            "validation_split": None,
            "test_split": "evaluated",
            "fewshot_split": "fewshot" if "fewshot" in splits else None,
        }
        task_file = self.workspace / f"{task}.yaml"
        task_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        return task_file

    def _converted(self, file: LocalFile) -> dict[str, list[Row]]:
        """All rows of a file in the stock layout, by task; read once."""
        if file.path not in self._rows:
            by_task: dict[str, list[Row]] = {}
            for row, converted in converted_rows(file):
                task = self._task_of(row, file)
                if task is not None:
                    by_task.setdefault(task, []).append(converted)
            self._rows[file.path] = by_task
        return self._rows[file.path]


def write_parquet(rows: Sequence[Row], target: Path) -> None:
    """The rows as a Parquet file, whose columns are the first row's."""
    # Parquet, not JSON: its schema is explicit, so strings that look like dates stay strings.
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), target)
