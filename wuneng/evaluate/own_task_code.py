"""What of a task file of the user's own (``--include-path``) would run code, which asks for trust.

Functions (``!function``), in the file or in one that it includes; metrics that the evaluate library
fetches as scripts; and templates: Jinja's are programs, which reach the whole interpreter by way of
the attributes of a string, unless they are rendered in its sandbox.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wuneng.errors import TaskError, reason
from wuneng.foreign import is_trusted

if TYPE_CHECKING:
    from jinja2.sandbox import SandboxedEnvironment

__all__ = ["refuse_code", "sandboxed_templates"]

_CODE = re.compile(r"!function\b")
_TRUST = "If you trust it, pass --trust-remote-code"


def refuse_code(leaf: str, file: Path, config: Mapping[str, Any]) -> None:
    """TaskError where the task has functions or metrics of its own and code is not trusted.

    Args:
        leaf: its name.
        file: the user's file that defines it.
        config: what the harness read of it and of what it includes, functions unresolved.
    """
    if is_trusted():
        return
    _refuse_functions(leaf, file)
    _refuse_metrics(leaf, file, config.get("metric_list"))


@contextmanager
def sandboxed_templates(include_path: Path | None) -> Iterator[None]:
    """While open, templates are rendered in Jinja's sandbox, where files of the user's own are
    read and code is not trusted. Plain templates give the same text there."""
    if include_path is None or is_trusted():
        yield
        return
    import lm_eval.utils

    plain = lm_eval.utils.env
    sandbox = _sandbox()(
        loader=plain.loader,
        undefined=plain.undefined,
        keep_trailing_newline=plain.keep_trailing_newline,
    )
    sandbox.filters = plain.filters
    lm_eval.utils.env = sandbox
    try:
        yield
    finally:
        lm_eval.utils.env = plain


def _sandbox() -> type[SandboxedEnvironment]:
    from jinja2 import runtime, utils
    from jinja2.sandbox import SandboxedEnvironment

    plain = (str, bytes, int, float, bool, type(None), list, tuple, dict, date, time, timedelta)
    jinjas = (runtime.LoopContext, runtime.Macro, utils.Namespace, utils.Cycler, utils.Joiner)

    class Sandbox(SandboxedEnvironment):
        """Of other objects, as the columns of some data sets hold (an image has ``save``), nothing
        is reached."""

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            known = type(obj) in plain or isinstance(obj, (*jinjas, datetime))
            return known and super().is_safe_attribute(obj, attr, value)

    return Sandbox


def _refuse_functions(leaf: str, file: Path) -> None:
    """In the file, or one that it includes."""
    left, seen = [file.resolve()], set()
    while left:
        one = left.pop()
        if one in seen:
            continue
        if not one.is_file():
            raise TaskError(f"--include-path: task {leaf!r} includes {one}, which is no file")
        seen.add(one)
        text = one.read_text(encoding="utf-8", errors="replace")
        if _CODE.search(text):
            raise TaskError(
                f"--include-path: task {leaf!r} runs code of its own (!function in {one}). {_TRUST}"
            )
        # Resolved, as the harness does: what a link includes lies beside what it points to.
        left += [(one.parent / name).resolve() for name in _included(one, text)]


def _included(file: Path, text: str) -> list[str]:
    """What the file includes: one name or several, however they are written. TaskError where it is
    more than plain YAML, which may be code in another spelling."""
    import yaml

    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise TaskError(
            f"--include-path: {file} is no plain YAML ({reason(error)}). {_TRUST}"
        ) from None
    names = found.get("include") if isinstance(found, dict) else None
    return [str(name) for name in (names if isinstance(names, list) else [names]) if name]


def _refuse_metrics(leaf: str, file: Path, listed: Any) -> None:
    """Any that the harness itself does not have: it asks the evaluate library then, which takes the
    name for that of a script, on the hub or in a directory."""
    from lm_eval.api.registry import metric_registry

    for entry in listed if isinstance(listed, list) else [listed]:
        if not isinstance(entry, dict):
            continue  # the harness says what is wrong with it
        name, known = str(entry.get("metric")), [str(key) for key in metric_registry]
        if name in known and not entry.get("hf_evaluate"):
            continue
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f" Did you mean {', '.join(map(repr, near))}?" if near and name not in near else ""
        raise TaskError(
            f"--include-path: task {leaf!r} ({file}): metric {name!r} is not one of the harness, "
            f"and would be run as a script of the evaluate library.{hint} {_TRUST}"
        )
