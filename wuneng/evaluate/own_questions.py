"""The ``questions`` task: one's own questions in .jsonl files, asked in the wording of training.

Every file is a task of its own, called ``questions-<name of the file>``. With ``choices`` the most
probable one is the model's answer (``acc``), else what it writes up to the end of the line,
compared but for letter case and punctuation (``exact_match``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from wuneng.data.questions import Question, read_questions
from wuneng.errors import DataError, InputError, TaskError, nearest
from wuneng.evaluate.local_data import LocalTask, write_parquet
from wuneng.evaluate.local_files import first_row, local_files, split_of
from wuneng.evaluate.tasks import QUESTIONS
from wuneng.recipe import QuestionFields

__all__ = ["OwnQuestions", "parse_fields", "question_tasks"]

_FIRST_WORDS = r"(\S(?:.*\S)?)"
_METRICS: dict[bool, dict[str, Any]] = {
    True: {"metric": "acc"},
    False: {"metric": "exact_match", "ignore_case": True, "ignore_punctuation": True},
}


@dataclass(frozen=True)
class OwnQuestions:
    """Where questions are.

    Attributes:
        fields: what rows call their parts.
        files: to read where no directory is given; those of a run's recipe.
    """

    fields: QuestionFields
    files: tuple[Path, ...] = ()


def parse_fields(text: str) -> QuestionFields:
    """``question=q,answer=a`` as fields; InputError for anything else, with the nearest name."""
    known = QuestionFields.model_fields
    given: dict[str, str] = {}
    for part in text.split(","):
        name, sign, value = (piece.strip() for piece in part.partition("="))
        if not sign or not value or name not in known:
            raise InputError(
                f"--fields: expected {'=NAME,'.join(known)}=NAME or some of them, got {part!r}."
                f"{nearest(name, known)}"
            )
        given[name] = value
    return QuestionFields(**given)


def question_tasks(
    own: OwnQuestions, data_dir: Path | None, workspace: Path, num_fewshot: int | None
) -> list[LocalTask]:
    """Write each file's questions, and a task file, into ``workspace``.

    Raises:
        TaskError: no file with such questions, two of one name, or no solved ones to show.
        DataError: a row that is no question.
    """
    files = list(own.files) if data_dir is None else _files_in(data_dir, own.fields)
    shown = [path for path in files if split_of(path) == "train"]
    asked = [path for path in files if path not in shown]
    if not asked:
        raise TaskError(
            f"--tasks {QUESTIONS}: no file to ask from; expected --data-dir DIR with a .jsonl file "
            "(one with the word train in its name is only shown from), or a run whose recipe has "
            "data.questions and data.validation"
        )
    if num_fewshot and not shown:
        raise TaskError(
            f"--num-fewshot: no file to show {num_fewshot} solved questions from; add one with the "
            "word train in its name, or pass --num-fewshot 0"
        )
    solved = [q for path in shown for q in read_questions(path, own.fields)] if num_fewshot else []
    tasks: dict[str, LocalTask] = {}
    for path in asked:
        name = f"{QUESTIONS}-{path.name.split('.')[0]}"
        if name in tasks:
            raise TaskError(
                f"--tasks {QUESTIONS}: {tasks[name].source} and {path} are of one name; rename one"
            )
        questions = list(read_questions(path, own.fields))
        file = _write(name, path, questions, solved, workspace)
        tasks[name] = LocalTask(name, file, str(path), split_of(path) or "unnamed")
    return list(tasks.values())


def _files_in(directory: Path, fields: QuestionFields) -> list[Path]:
    if not directory.is_dir():
        raise TaskError(f"--data-dir: {directory} is not a directory.")
    seen: dict[str, None] = {}
    found = []
    for path in local_files(directory):
        row = first_row(path) or {}
        seen |= dict.fromkeys(row)
        if {fields.question, fields.answer} <= set(row):
            found.append(path)
    if not found:
        near = "".join(nearest(name, seen) for name in (fields.question, fields.answer))
        raise TaskError(
            f"--data-dir: no .jsonl file under {directory} has the fields {fields.question!r} and "
            f"{fields.answer!r}; found {', '.join(map(repr, seen)) or 'no field'}. --fields says "
            f"what they are called.{near}"
        )
    return found


def _write(
    name: str,
    path: Path,
    questions: Sequence[Question],
    solved: Sequence[Question],
    workspace: Path,
) -> Path:
    if not questions:
        raise DataError(f"{path}: holds no question")
    choice = bool(questions[0].choices)
    if any(bool(q.choices) != choice for q in (*questions, *solved)):
        raise DataError(f"{path}: expected choices in every row or in none, also in those shown")
    data_files = {}
    for split, some in (("test", questions), ("fewshot", solved)):
        if some:
            data_files[split] = str(workspace / f"{name}-{split}.parquet")
            write_parquet([_row(q) for q in some], Path(data_files[split]))
    config = {
        "task": name,
        "dataset_path": "parquet",
        "dataset_kwargs": {"data_files": data_files, "cache_dir": str(workspace / "hf")},
        "test_split": "test",
        "fewshot_split": "fewshot" if solved else None,
        "doc_to_text": "prompt",
        "doc_to_target": "place" if choice else "answer",
        "metric_list": [{**_METRICS[choice], "aggregation": "mean", "higher_is_better": True}],
        **(_CHOOSING if choice else _WRITING),
    }
    file = workspace / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


_CHOOSING: dict[str, Any] = {"output_type": "multiple_choice", "doc_to_choice": "choices"}
_WRITING: dict[str, Any] = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 64},
    "filter_list": [
        {
            "name": "none",
            "filter": [
                {"function": "regex", "regex_pattern": _FIRST_WORDS},
                {"function": "take_first"},
            ],
        }
    ],
}


def _row(question: Question) -> dict[str, Any]:
    place = question.choices.index(question.answer) if question.choices else -1
    return {
        "prompt": question.prompt,
        "answer": question.answer,
        "choices": list(question.choices),
        "place": place,
    }
