"""A member of the suite as files that the harness reads: its items, and its task file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from wuneng.evaluate.local_data import LocalTask, write_parquet
from wuneng.evaluate.suite.members import FORMS
from wuneng.evaluate.suite.needle_form import NEEDLE_LENGTHS, needle_form
from wuneng.evaluate.suite.question import Form, Question, questions

__all__ = ["suite_items", "write_member"]

_VERSION = 1


def write_member(
    name: str,
    workspace: Path,
    *,
    count_tokens: Callable[[str], int],
    lengths: Sequence[int] | None = None,
) -> LocalTask:
    """Generate a member's items and write them, with the task file, into ``workspace``.

    Args:
        count_tokens: of a text, by the tokenizer that the needle's lengths are counted in.
        lengths: of the needle's prompts; None for 1k to 64k.
    """
    form = FORMS.get(name) or needle_form(lengths or NEEDLE_LENGTHS, count_tokens)
    splits = suite_items(name, form)
    files = {}
    for split, rows in splits.items():
        files[split] = str(workspace / f"{name}-{split}.parquet")
        write_parquet(rows, Path(files[split]))
    task_file = workspace / f"{name}.yaml"
    config = _task_config(name, form, files, workspace)
    task_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return LocalTask(name, task_file, "generated", "test")


def suite_items(name: str, form: Form) -> dict[str, list[dict[str, Any]]]:
    """``test`` and, where there are solved examples, ``fewshot``: no prompt is in both.

    The levels take turns, so that the first items are of all of them.
    """
    known: set[str] = set()
    shown = questions(name, form, form.levels[0], 4 * form.fewshot, known) if form.fewshot else []
    by_level = [questions(name, form, level, form.items, known) for level in form.levels]
    asked = [
        _row(question, level.value)
        for turn in zip(*by_level, strict=True)
        for question, level in zip(turn, form.levels, strict=True)
    ]
    solved = [_row(question, form.levels[0].value) for question in shown]
    return {"test": asked, **({"fewshot": solved} if solved else {})}


def _row(question: Question, level: int) -> dict[str, Any]:
    return {
        "prompt": question.prompt,
        "choices": list(question.choices),
        "answer": question.answer,
        "level": level,
    }


def _task_config(name: str, form: Form, files: dict[str, str], workspace: Path) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "parquet",
        # The copy that `datasets` makes goes with the workspace, not into the user's cache.
        "dataset_kwargs": {"data_files": files, "cache_dir": str(workspace / "hf")},
        "test_split": "test",
        "fewshot_split": "fewshot" if form.fewshot else None,
        "num_fewshot": form.fewshot,
        "output_type": "multiple_choice",
        "doc_to_text": "prompt",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {
            "version": _VERSION,
            "level_field": "level",
            "level_name": form.measure,
            "levels": [level.value for level in form.levels],
        },
    }
