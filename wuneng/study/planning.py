"""What a study is going to do: written down and hashed before its first step.

    study-plan.json     {"sha256": of the plan, "plan": {...}, "code": which it was}

The hash goes into results.json. A plan, recipe or code that was changed afterwards is still carried
out, and what changed is named there.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wuneng.device import source_version
from wuneng.errors import DataError, RecipeError, nearest
from wuneng.recipe import Recipe, Study, SyntheticData, WrittenRecipe
from wuneng.recipe.data import TextData, part_names
from wuneng.records import RunDirectory, read_json, write_json
from wuneng.statistics import minimum_detectable_effect
from wuneng.study.equal_time import WIDTHS, Widths, rung_at_widths
from wuneng.study.rungs import Rung, matched_arms, rungs_of
from wuneng.train.plan import RunPlan, plan_run
from wuneng.train.starting_point import Sources

__all__ = ["PLAN", "StudyPlan", "plan_study", "recorded_plan", "stored_plan", "variant_of"]

PLAN = "study-plan.json"


@dataclass(frozen=True)
class StudyPlan:
    """A study resolved."""

    written: WrittenRecipe
    rungs: tuple[Rung, ...]
    runs: Mapping[str, RunPlan] = field(compare=False)
    """By the rung's name: the arms at that rung."""

    @property
    def study(self) -> Study:
        """Its settings."""
        assert self.written.recipe.study is not None
        return self.written.recipe.study

    @property
    def tuning_seeds(self) -> list[int]:
        """From the recipe's seed on."""
        first = self.written.recipe.seeds[0]
        return list(range(first, first + self.study.tuning_seeds)) if self.study.tune else []

    @property
    def seeds(self) -> list[int]:
        """Those that no tuning has seen."""
        first = self.written.recipe.seeds[0] + len(self.tuning_seeds)
        return list(range(first, first + self.study.seeds))

    @property
    def higher_is_better(self) -> bool:
        """Of the primary figure."""
        return "/accuracy@" in self.study.primary

    @property
    def detectable(self) -> float:
        """The difference that these seeds show four times in five, as a share of the figure, if
        the figure moves from seed to seed by ``study.seed_spread``."""
        spread = self.study.seed_spread * math.sqrt(2)
        return minimum_detectable_effect(spread, self.study.seeds)

    def record(self) -> dict[str, Any]:
        """What is hashed: all that decides what will be compared, and how."""
        study, recipe = self.study, self.written.recipe
        return {
            "schema": 1,
            "name": recipe.name,
            "primary": study.primary,
            "smallest_effect": study.smallest_effect,
            "seed_spread": study.seed_spread,
            "minimum_detectable_effect": round(self.detectable, 6),
            "match": study.match,
            "tune": {path: list(values) for path, values in study.tune.items()},
            "tuning_seeds": self.tuning_seeds,
            "seeds": self.seeds,
            "reference": recipe.reference_arm,
            "arms": list(recipe.arms),
            "rungs": [self._rung(rung) for rung in self.rungs],
            "recipe": _without_machine(self.written.source.data),
        }

    def _rung(self, rung: Rung) -> dict[str, Any]:
        plan = self.runs[rung.name]
        return {
            "rung": rung.name,
            "size": rung.size,
            "tokens_per_parameter": rung.tokens_per_parameter,
            **({} if rung.widths is None else {WIDTHS: rung.widths}),
            "steps": plan.training.total_steps,
            "tokens": plan.training.total_tokens,
            "parameters": {name: arm.facts.parameters for name, arm in plan.arms.items()},
            "training_flops": {
                name: arm.facts.flops_per_token * plan.training.total_tokens
                for name, arm in plan.arms.items()
            },
        }


def plan_study(
    written: WrittenRecipe, sources: Sources | None = None, widths: Widths | None = None
) -> StudyPlan:
    """Resolve a study: its rungs, and the arms at each.

    Args:
        widths: by rung and arm, where ``match: time`` has measured them; else such arms are sized
            by their parameters.

    Raises:
        RecipeError: an arm cannot be sized, or no such figure is measured.
        DataError: files that the recipe names are missing.
    """
    assert written.recipe.study is not None
    _check_primary(written.recipe, written.recipe.study.primary)
    rungs = tuple(
        rung if widths is None else rung_at_widths(rung, widths[rung.name])
        for rung in rungs_of(written, sources)
    )
    runs = {
        rung.name: plan_run(variant_of(written, rung, {}), sources, text="present")
        for rung in rungs
    }
    return StudyPlan(written, rungs, runs)


def variant_of(
    written: WrittenRecipe, rung: Rung, values: Mapping[str, Any], *, part: str = "all"
) -> Recipe:
    """The run at ``rung`` with ``values``; ``part`` of the held-out text is scored."""
    changes = {**matched_arms(written), **rung.changes, **values}
    if written.recipe.data.kind == "text":
        changes["data.validation_part"] = part
    return written.variant(changes, why="study")


def recorded_plan(directory: RunDirectory, plan: StudyPlan) -> dict[str, Any]:
    """Write study-plan.json, or hold the plan against the one that was written at the start.

    Returns:
        ``sha256`` of the first plan, and ``changes`` since, in words.

    Raises:
        DataError: the file is not what was written.
    """
    stored, now = stored_plan(directory), plan.record()
    if stored is None:
        kept = {"sha256": _hash(now), "plan": now, "code": source_version()}
        write_json(directory.path / PLAN, kept)
        return {"sha256": _hash(now), "changes": []}
    changes = []
    if _hash(stored["plan"]) != stored.get("sha256"):
        changes.append(f"{PLAN} was edited after it was written")
    changes += list(_differences(stored["plan"], json.loads(json.dumps(now)), ""))
    changes += list(_other_code(directory, stored))
    return {"sha256": stored.get("sha256"), "changes": changes}


def stored_plan(directory: RunDirectory) -> dict[str, Any] | None:
    """study-plan.json; None: there is none yet. DataError: it is not what was written."""
    path = directory.path / PLAN
    if not path.exists():
        return None
    stored = read_json(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("plan"), dict):
        raise DataError(f"{path} is not the plan of a study. Start anew with --resume never")
    return stored


def _other_code(directory: RunDirectory, stored: Mapping[str, Any]) -> Iterator[str]:
    """Where the rest of a study is carried out by another version or commit than its plan was
    written by; edits that nobody committed are not told apart."""
    if "code" not in stored or directory.results.exists():
        return  # a plan of an earlier version; or nothing is left to carry out
    was, now = stored["code"], source_version()
    if was != now:
        yield f"code: {_code(was)} when it was planned, {_code(now)} now"


def _code(version: Any) -> str:
    return ", ".join(str(part) for part in dict(version).values() if part)


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            inner = f"{path}.{key}" if path else key
            yield from _differences(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{path}: {old} was planned, {new} is carried out"


def _hash(plan: Mapping[str, Any]) -> str:
    text = json.dumps(plan, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _without_machine(written: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what the machine decides or nobody measures."""
    kept = {k: v for k, v in written.items() if k not in ("description", "device", "loggers")}
    training = {k: v for k, v in written["training"].items() if k != "num_threads"}
    return {**kept, "training": training}


def _check_primary(recipe: Recipe, primary: str) -> None:
    scored, data = ["text"], recipe.data
    if isinstance(data, TextData) and data.mixture and data.validation is None:
        scored += [f"text.{name}" for name in part_names(data.mixture)]
    figures = [f"{task}/{f}" for task in scored for f in ("bits_per_byte", "loss", "perplexity")]
    if isinstance(recipe.data, SyntheticData):
        figures = []
        for task in recipe.data.tasks:
            label = task.label
            lengths = (
                recipe.training.sequence_length * times
                for times in recipe.evaluation.length_multiples
            )
            figures += [f"{label}/loss", *(f"{label}/accuracy@{length}" for length in lengths)]
    if primary not in figures:
        raise RecipeError(
            f"study.primary: expected one of {', '.join(figures)}, got {primary!r}."
            f"{nearest(primary, figures)}"
        )
