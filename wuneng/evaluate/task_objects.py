"""One harness task object with its data, or why it cannot be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.errors import TaskError, reason
from wuneng.evaluate.local_data import LocalTask

__all__ = ["check_examples", "load_task"]


def load_task(
    leaf: str,
    config: Mapping[str, Any],
    local: LocalTask | None,
    manager: Any,
    num_fewshot: int | None,
) -> Any:
    """Build a task, which loads or makes its items.

    Args:
        leaf: its name.
        config: its configuration, functions unresolved.
        local: the task file to build it from instead of the stock one.
        manager: the harness' `TaskManager`.
        num_fewshot: examples before each question; None leaves the task's own number.

    Raises:
        TaskError: its data, or a package that it needs, cannot be had.
    """
    try:
        loaded = manager.load([str(local.task_file) if local else leaf])
    except ImportError as error:
        raise TaskError(f"task {leaf!r} needs a package that is not installed: {error}") from error
    except TaskError:
        raise
    except Exception as error:
        if "max_seq_length" in str(error):  # no text of theirs fits
            raise TaskError(f"task {leaf!r}: {reason(error)}") from error
        if local is not None or not _is_data_error(error):
            raise
        raise TaskError(_unavailable(leaf, config, error)) from error
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
    data_set = str(config.get("dataset_path") or "that it is made of")
    if config.get("dataset_name"):
        data_set += f" ({config['dataset_name']})"
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else ""
    return (
        f"task {leaf!r} needs the data set {data_set}, which is not in the cache and could not be "
        f"fetched ({type(error).__name__}: {reason}). Two ways out: run once with a network "
        "connection (and HF_HUB_OFFLINE unset) so that it is cached, or give local files with "
        "--data-dir DIR."
    )
