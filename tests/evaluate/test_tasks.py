"""Task names: aliases, the fast index of the common suite, unknown names."""

from __future__ import annotations

from typing import ClassVar

import pytest

from wuneng.errors import TaskError
from wuneng.evaluate.task_loading import quiet_harness
from wuneng.evaluate.tasks import (
    ALIASES,
    REASONING,
    _scan_task_files,
    expand_aliases,
    select_tasks,
)


def test_aliases_are_expanded_once_and_in_order() -> None:
    names = ["lambada", "arc", "arc_easy", "obqa"]
    assert expand_aliases(names) == ["lambada_openai", "arc_easy", "arc_challenge", "openbookqa"]


def test_the_common_suite_needs_no_full_index() -> None:
    full: list[None] = []
    with quiet_harness():
        selections, manager = select_tasks(
            [*ALIASES, "mmlu", "gsm8k", "copa"], on_full_index=lambda: full.append(None)
        )
    assert not full
    assert len(manager.all_tasks) < 200
    assert {one.name for one in selections} == {*REASONING, "mmlu", "gsm8k", "copa"}


def test_mmlu_is_57_tasks_reported_together() -> None:
    with quiet_harness():
        (mmlu,), _ = select_tasks(["mmlu"])
    assert mmlu.pool
    assert len(mmlu.leaves) == 57
    assert all(leaf.startswith("mmlu_") for leaf in mmlu.leaves)


def test_a_tag_is_its_tasks_and_not_a_figure_of_its_own() -> None:
    with quiet_harness():
        (arc,), _ = select_tasks(["ai2_arc"])
    assert (set(arc.leaves), arc.pool) == ({"arc_easy", "arc_challenge"}, False)


def test_an_unknown_name_gets_near_ones_without_the_full_index() -> None:
    """`wsc273` is not of the common suite but a task, so it is not what is complained about."""
    told: list[str] = []
    with quiet_harness(), pytest.raises(TaskError) as caught:
        select_tasks(["wsc273", "hella-swagg"], on_full_index=lambda: told.append("slow"))
    assert told == []
    assert "'hella-swagg' is not a known evaluation task" in str(caught.value)
    assert "'hellaswag'" in str(caught.value)
    with pytest.raises(TaskError, match="Did you mean 'wsc273'"):
        select_tasks(["wsc27"])


def test_a_word_of_a_task_file_is_looked_up_in_the_full_index(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Index:
        all_tasks = ("piqa", "wsc273")
        task_index: ClassVar = {}

    monkeypatch.setattr("wuneng.evaluate.tasks._manager", lambda **_: Index)
    told: list[str] = []
    with pytest.raises(TaskError, match="'exact_match' is not a known evaluation task"):
        select_tasks(["exact_match"], on_full_index=lambda: told.append("slow"))
    assert told == ["slow"]


@pytest.mark.slow
def test_every_task_is_a_value_in_some_task_file() -> None:
    from lm_eval.tasks import TaskManager

    with quiet_harness():
        names = TaskManager().all_tasks
    values, _ = _scan_task_files()
    assert set(names) <= values


def test_a_word_of_some_prompt_is_no_value() -> None:
    """ "mine" occurs in a question of MMLU's."""
    told: list[str] = []
    with pytest.raises(TaskError, match="'mine' is not a known evaluation task"):
        select_tasks(["mine"], on_full_index=lambda: told.append("slow"))
    assert not told


def test_no_name_is_refused() -> None:
    with pytest.raises(TaskError, match="no task given"):
        select_tasks(["", ""])
