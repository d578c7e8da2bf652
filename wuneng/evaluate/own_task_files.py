"""Task files of the user's own (``--include-path``): what is wrong with one is told with its name.

The harness takes nearly anything, and fails over it wherever it comes to it: as the task is built,
as a prompt is made of an item, or as an answer is filtered.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wuneng.errors import TaskError, WuNengError, reason

__all__ = ["build_errors", "own_file", "run_errors", "unreadable_files"]

_CODE = re.compile(r"!function\b")
_MOST_NAMED = 5


def own_file(entry: Any, include_path: Path | None) -> Path | None:
    """The file of an entry of the harness' index that was found below ``include_path``, perhaps as
    a link to one elsewhere; else None."""
    if include_path is None or entry is None or not entry.yaml_path:
        return None
    found, file = Path(entry.yaml_path).absolute(), Path(entry.yaml_path).resolve()
    roots = (include_path.absolute(), include_path.resolve())
    return file if any(one.is_relative_to(r) for one in (found, file) for r in roots) else None


@contextmanager
def build_errors(leaf: str, file: Path | None) -> Iterator[None]:
    """Whatever is raised while a task is made of the user's ``file``, as a TaskError."""
    try:
        yield
    except WuNengError:
        raise
    except Exception as error:
        if file is None:
            raise
        raise _blamed(leaf, file, error) from error


@contextmanager
def run_errors(files: Mapping[str, Path], tasks: Mapping[str, Any]) -> Iterator[None]:
    """What the harness itself raises while it runs tasks of the user's, as a TaskError; what the
    model raises, or we do, stays what it is."""
    try:
        yield
    except WuNengError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        modules = [str(frame.f_globals.get("__name__")) for frame in frames]
        inside = next((i for i, m in enumerate(modules) if m.startswith("lm_eval")), None)
        if not files or inside is None or any(m.startswith("wuneng") for m in modules[inside:]):
            raise
        met = [frame.f_locals.get("self") for frame in frames[inside:]]
        met += [frame.f_locals.get("task") for frame in frames[inside:]]
        names = [n for n in files if any(tasks[n] is one for one in met)] or list(files)
        raise _blamed(names[0], files[names[0]], error) from error


def _blamed(leaf: str, file: Path, error: Exception) -> TaskError:
    said = reason(error)
    kind = type(error).__name__
    said = said if said == kind else f"{kind}: {said}"
    if kind == "SecurityError":  # of the sandbox that `own_task_code` puts templates in
        said = f"{said} If you trust it, pass --trust-remote-code"
    return TaskError(f"{file}: task {leaf!r}: {said}")


def unreadable_files(include_path: Path | None) -> str:
    """Which YAML files there are no task files, and why, as a sentence; nothing where all are."""
    import yaml

    wrong = []
    for file in sorted(include_path.rglob("*.yaml")) if include_path else ():
        text = _CODE.sub("", file.read_text(encoding="utf-8", errors="replace"))
        try:
            found = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            wrong.append(f"{file}: {reason(error)}")
            continue
        if not isinstance(found, dict):
            wrong.append(f"{file}: expected a mapping, got {type(found).__name__}")
    if not wrong:
        return ""
    more = f", and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    return f" No task files: {'; '.join(wrong[:_MOST_NAMED])}{more}."
