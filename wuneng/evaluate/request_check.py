"""What a task asks of a model, where its file is wrong: no text, or settings that are none."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from wuneng.errors import TaskError, reason, shortened

__all__ = ["check_texts", "settings_errors"]


def check_texts(requests: Sequence[Any]) -> None:
    """TaskError where the prompt, the text or the answer of one of the harness' ``requests`` is
    something else, as a column of numbers is."""
    for request in requests:
        for given in request.args:
            if not isinstance(given, str | dict):  # a mapping is of settings
                raise TaskError(
                    f"task {request.task_name!r}: expected text to read and to score, got "
                    f"{shortened(repr(given))} ({type(given).__name__})"
                )


@contextmanager
def settings_errors(requests: Sequence[Any]) -> Iterator[None]:
    """What transformers' generation itself raises of its settings, as a TaskError."""
    try:
        yield
    except (ValueError, TypeError) as error:
        *_, (last, _) = traceback.walk_tb(error.__traceback__)
        if not str(last.f_globals.get("__name__")).startswith("transformers.generation"):
            raise
        names = list(dict.fromkeys(str(request.task_name) for request in requests))
        of_task = f"task {names[0]!r}" if len(names) == 1 else f"one of the tasks {names}"
        raise TaskError(f"{of_task}: generation_kwargs: {reason(error)}") from error
