"""Run harness tasks on a model and hand back what it did on every item."""

from __future__ import annotations

import contextlib
import functools
import gc
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.long_context import RULER_MEAN
from wuneng.evaluate.outcomes import MetricOutcomes, TaskOutcomes
from wuneng.evaluate.own_task_code import sandboxed_templates
from wuneng.evaluate.own_task_files import build_errors, run_errors
from wuneng.evaluate.task_loading import LoadedTasks, quiet_harness

__all__ = ["run_tasks"]

# The harness' own defaults, so that few-shot examples and sampling are the ones it would use.
_FEWSHOT_SEED = 1234
_TORCH_SEED = 1234
# Aggregations that are a ratio of sums over items.
_SCALES = {
    "mean": "mean",
    "perplexity": "perplexity",
    "weighted_perplexity": "perplexity",
    "bits_per_byte": "bits",
    RULER_MEAN: "mean",
}


def run_tasks(
    model: HarnessModel, loaded: LoadedTasks, *, limit: int | None = None, log_items: bool = False
) -> dict[str, TaskOutcomes]:
    """Evaluate a model on every loaded task.

    Args:
        model: the model, wrapped.
        loaded: the tasks and their data; may be used again for another model.
        limit: the first so many items of each task; None for all.
        log_items: keep each item's prompt, target and the model's answer.

    Returns:
        Outcomes by task name, single tasks only (groups are pooled by the caller).

    Raises:
        TaskError: an answer longer than the model's context.
    """
    from lm_eval.evaluator import evaluate

    for name, task in loaded.tasks.items():
        task.set_fewshot_seed(seed=_FEWSHOT_SEED)
        with build_errors(name, loaded.files.get(name)):
            _fit_generation(task, model.max_length)
    torch.manual_seed(_TORCH_SEED)
    # The harness prints remarks about batch sizes to stdout, which belongs to results.
    quiet = contextlib.redirect_stdout(io.StringIO())
    with (
        sandboxed_templates(loaded.include_path),
        quiet_harness(),
        _lean_harness(),
        quiet,
        run_errors(loaded.files, loaded.tasks),
    ):
        results = evaluate(
            model,
            {"tasks": dict(loaded.tasks), "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=0,
            log_samples=True,
        )
    assert results is not None, "evaluation runs in one process"
    return {
        name: _outcomes(name, task, results["samples"][name], loaded, log_items)
        for name, task in loaded.tasks.items()
    }


@contextlib.contextmanager
def _lean_harness() -> Iterator[None]:
    """Save time that the harness wastes: per item it compiles four templates, which stay the same,
    and what it allocates has the collector look through all modules that are loaded."""
    from lm_eval.utils import env

    compile_template = env.from_string
    env.from_string = functools.lru_cache(maxsize=None)(compile_template)  # type: ignore[method-assign]
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        del env.from_string


def _fit_generation(task: Any, max_length: int) -> None:
    """Lower a task's own number of generated tokens to what a short context leaves room for.

    Raises ValueError for settings that are none.
    """
    if task.get_config("output_type") != "generate_until":
        return
    settings = task.get_config("generation_kwargs") or {}
    until = settings.get("until") or []
    if not all(isinstance(one, str) for one in (until if isinstance(until, list) else [until])):
        raise ValueError(f"generation_kwargs.until: expected a text or several, got {until!r}")
    asked = settings.get("max_gen_toks")
    if asked is not None and int(asked) >= max_length:
        task.set_config("generation_kwargs", {"max_gen_toks": max_length // 2}, update=True)


def _outcomes(
    name: str, task: Any, samples: list[dict[str, Any]], loaded: LoadedTasks, log_items: bool
) -> TaskOutcomes:
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    by_filter = {key: [s for s in samples if s["filter"] == key] for key in filters}
    first = by_filter[filters[0]]
    metrics: dict[str, MetricOutcomes] = {}
    for key, rows in by_filter.items():
        for metric in dict.fromkeys(metric for row in rows for metric in row["metrics"]):
            label = metric if key == "none" else f"{metric},{key}"
            scored = _metric(metric, rows, task)
            if scored.kind == "aggregate" or not np.isnan(scored.values).all():
                metrics[label] = scored
    local = loaded.local.get(name)
    return TaskOutcomes(
        task=name,
        item_ids=[str(sample["doc_id"]) for sample in first],
        metrics=metrics,
        chance=_chance(task, first),
        majority=_majority(task, first),
        split=local.split if local else str(_evaluated_split(task)),
        num_fewshot=int(task.get_config("num_fewshot") or 0),
        items=[_logged(sample, by_filter, i) for i, sample in enumerate(first)]
        if log_items
        else [],
        **_levels(task, first),
    )


def _levels(task: Any, samples: list[dict[str, Any]]) -> dict[str, Any]:
    """How difficult each item is, in tasks whose metadata name the field that says so."""
    metadata = task.get_config("metadata") or {}
    field = metadata.get("level_field") if isinstance(metadata, dict) else None
    if field is None or any(field not in sample["doc"] for sample in samples):
        return {}
    values = [sample["doc"][field] for sample in samples]
    levels = [v if isinstance(v, int | float | str) else str(v) for v in values]
    at = {
        level: [s for s, own in zip(samples, levels, strict=True) if own == level]
        for level in levels
    }
    return {
        "levels": tuple(levels),
        "level_name": str(metadata.get("level_name", field)),
        "level_chances": {level: _chance(task, there) for level, there in at.items()},
    }


def _metric(metric: str, rows: list[dict[str, Any]], task: Any) -> MetricOutcomes:
    aggregation = task.aggregation().get(metric)
    name = getattr(aggregation, "__name__", "mean")
    scale = _SCALES.get(name)
    higher = bool(task.higher_is_better().get(metric, True))
    given = [row.get(metric) for row in rows]
    if name == RULER_MEAN:  # its own mark of an item that is of another length
        given = [None if one == -1 else one for one in given]
    if scale is None:
        value = float(aggregation([one for one in given if one is not None]))
        return MetricOutcomes(
            "aggregate", np.zeros(len(rows)), higher_is_better=higher, aggregate=value
        )
    pairs = [one if isinstance(one, tuple | list) else (one, 1.0) for one in given]
    values = np.array([np.nan if v is None else float(v) for v, _ in pairs])
    weights = np.array([float(w) for _, w in pairs])
    return MetricOutcomes(
        "ratio",
        values,
        weights=None if (weights == 1.0).all() else weights,
        scale=scale,  # type: ignore[arg-type]
        higher_is_better=higher,
    )


def _choices(task: Any, sample: Mapping[str, Any]) -> int:
    count = len(sample["arguments"])
    # Mutual-information scoring asks for each choice a second time, without its question.
    return count // 2 if "acc_mutual_info" in task.aggregation() else count


def _chance(task: Any, samples: list[dict[str, Any]]) -> float | None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    return float(np.mean([1.0 / _choices(task, sample) for sample in samples]))


def _majority(task: Any, samples: list[dict[str, Any]]) -> float | None:
    """How often the most frequent answer is right, where all items offer the same answers."""
    if task.OUTPUT_TYPE != "multiple_choice" or task.multiple_input:
        return None
    offered = {tuple(answer for _, answer in sample["arguments"]) for sample in samples}
    targets = [sample["target"] for sample in samples]
    if len(offered) != 1 or not all(isinstance(target, int) for target in targets):
        return None
    return Counter(targets).most_common(1)[0][1] / len(targets)


def _evaluated_split(task: Any) -> str | None:
    return task.config.test_split if task.has_test_docs() else task.config.validation_split


def _logged(
    sample: Mapping[str, Any], by_filter: Mapping[str, list[dict[str, Any]]], index: int
) -> dict[str, Any]:
    """One item for `--log-samples`: what was asked, and what this model answered."""
    outcome: dict[str, Any] = {}
    for key, rows in by_filter.items():
        row = rows[index]
        for metric in row["metrics"]:
            outcome[metric if key == "none" else f"{metric},{key}"] = row[metric]
    responses = [response[0] for response in sample["resps"]]
    if responses and isinstance(responses[0], tuple):
        outcome["loglikelihoods"] = [float(score) for score, _ in responses]
    else:
        outcome["responses"] = responses
    return {
        "id": str(sample["doc_id"]),
        "prompt": str(sample["arguments"][0][0]),
        "target": sample["target"],
        "outcome": outcome,
    }
