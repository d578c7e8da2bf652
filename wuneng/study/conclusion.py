"""What a study found: results.json, a table and a few sentences.

The first arm is held against every other, seed by seed. One figure decides, the plan's; the others
are in the record, and are called exploratory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wuneng.recipe.sweep import written
from wuneng.statistics import over_seeds
from wuneng.study.differences import difference
from wuneng.study.planning import StudyPlan
from wuneng.study.rungs import Rung
from wuneng.study.sentences import apart, study_sentences
from wuneng.study.tuning import Tuned
from wuneng.tables import Column, Table

__all__ = ["rung_record", "study_record", "study_table"]

Curves = Mapping[int, Sequence[tuple[float, float]]]
Entries = Mapping[str, Mapping[str, Any] | None]


def study_record(
    plan: StudyPlan, hashed: Mapping[str, Any], rungs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """results.json; ``models`` says in which run below the study an arm's model is."""
    recipe, study = plan.written.recipe, plan.study
    last = rungs[-1]
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "study",
        "name": recipe.name,
        "reference": recipe.reference_arm,
        "plan": dict(hashed),
        "primary": study.primary,
        "higher_is_better": plan.higher_is_better,
        "smallest_effect": study.smallest_effect,
        "match": study.match,
        "rungs": list(rungs),
        "models": {arm: last["directory"] for arm, entry in last["arms"].items() if entry},
    }
    record["sentences"] = study_sentences(record)
    record["summary"] = "\n".join(record["sentences"])
    return record


def rung_record(
    plan: StudyPlan,
    rung: Rung,
    tuned: Tuned | None,
    entries: Entries,
    sizes: Mapping[str, Any],
    curves: Mapping[str, Curves],
    crossed: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Any]:
    """One rung: what tuning chose, what the arms came to from fresh seeds, and the differences.

    Args:
        entries: every arm as results.json of a run has it; None where it diverged.
        sizes: ``cache_bytes`` and ``state_bytes`` of each arm.
        curves: validation curves of the primary figure, by arm and seed.
        crossed: by the other arm, the first's difference from it over seeds and rows at once.
    """
    first = plan.written.recipe.reference_arm
    ours = entries[first]
    arms: dict[str, Any] = {}
    for arm, entry in entries.items():
        arms[arm] = None if entry is None else _arm(plan.study.primary, entry, sizes.get(arm, {}))
        if arms[arm] is not None and tuned is not None:
            arms[arm]["tuned"] = tuned.best.get(arm, {})
            arms[arm]["at_edge"] = tuned.at_edge.get(arm, [])
    return {
        "rung": rung.name,
        "size": rung.size,
        "tokens_per_parameter": rung.tokens_per_parameter,
        "directory": f"compare/{rung.name}",
        "tuning": None if tuned is None else {"grid": tuned.grid, "tried": tuned.tried},
        "arms": arms,
        "differences": [
            {
                "arms": [first, other],
                **difference(
                    *(plan, ours, theirs, curves[first], curves[other], crossed.get(other))
                ),
            }
            for other, theirs in entries.items()
            if other != first and ours is not None and theirs is not None
        ],
    }


def _arm(primary: str, entry: Mapping[str, Any], sizes: Mapping[str, Any]) -> dict[str, Any]:
    values = [seed["quality"][primary] for seed in entry["per_seed"]]
    found = over_seeds(values)
    costs = ("kind", "parameters", "training_flops", "tokens", "seconds", "tokens_per_second")
    return {
        **{name: entry[name] for name in costs},
        **sizes,
        "seeds": entry["seeds"],
        "per_seed": values,
        "mean": found.mean,
        "spread": found.spread,
        "standard_error": found.stderr,
        "exploratory": {k: v for k, v in entry["quality"].items() if k != primary},
    }


def study_table(record: Mapping[str, Any]) -> Table:
    """One row for each rung and arm."""
    columns = [Column("rung", name=True), Column("arm", name=True), Column("tuned", text=True)]
    figures = ("parameters", "training FLOPs", "cache + state bytes", "time (s)")
    columns += [*map(Column, figures), Column(record["primary"]), Column("first arm minus it")]
    caption = f"± standard error over seeds; plan {record['plan']['sha256'][:12]}"
    table = Table(record["name"], columns, caption=caption)
    for rung in record["rungs"]:
        differences = {found["arms"][1]: found for found in rung["differences"]}
        for arm, entry in rung["arms"].items():
            if entry is None:
                table.add_row(rung["rung"], arm, *["–"] * 5, "diverged", "")
                continue
            memory = entry.get("cache_bytes", 0) + entry.get("state_bytes", 0)
            table.add_row(
                rung["rung"],
                arm,
                _named(entry.get("tuned", {})) or "–",
                f"{entry['parameters']:,.0f}",
                f"{entry['training_flops']:.2e}",
                f"{memory:,}",
                f"{entry['seconds']:,.1f}",
                f"{entry['mean']:.4f} ± {entry['standard_error']:.4f}",
                apart(differences[arm]) if arm in differences else "",
            )
    return table


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{path}={written(value)}" for path, value in values.items())
