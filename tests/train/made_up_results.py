"""Results of runs that never were."""

from __future__ import annotations

import itertools
from typing import Any

KINDS = {"wuneng": "hybrid", "mha": "attention", "mha-shift": "shifted attention"}


def arm(kind: str, quality: dict[str, float | None], **changes: Any) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "kind": kind,
        "token_shift": kind != "attention",
        "parameters": 1_000_000,
        "added_percent": 4.0 if kind == "hybrid" else 0.0,
        "training_flops": 1e12,
        "tokens": 800_000,
        "seconds": 61.5,
        "tokens_per_second": 13_000.0,
        "quality": quality,
        "standard_error": dict.fromkeys(quality, 0.0),
        "examples": dict.fromkeys(quality, 512),
        "seeds": [0, 1, 2],
        "quality_std": dict.fromkeys(quality, 0.0),
    }
    return {**entry, **changes}


def one_seed(results: dict[str, Any]) -> dict[str, Any]:
    """The same results as if the arms had been trained once."""
    for entry in results["arms"].values():
        entry["seeds"] = [0]
        del entry["quality_std"]
    return results


def compared(name: str, **values: float | None) -> dict[str, Any]:
    """Results with one figure; keyword ``mha_shift`` is the arm ``mha-shift``."""
    arms = {key.replace("_", "-"): {name: value} for key, value in values.items()}
    return {"name": "made-up", "arms": {key: arm(KINDS[key], q) for key, q in arms.items()}}


def paired(results: dict[str, Any], name: str, *, rows: int = 400, error: float = 0.001) -> Any:
    """Adds paired differences of every two arms with a small error."""
    arms = list(results["arms"])
    results["paired"] = []
    for first, second in itertools.combinations(arms, 2):
        one, other = (results["arms"][arm]["quality"][name] for arm in (first, second))
        interval = [one - other - 2 * error, one - other + 2 * error]
        entry = {"arms": [first, second], "figure": name, "difference": one - other}
        results["paired"].append(
            {**entry, "standard_error": error, "interval": interval, "p": 0.0004, "rows": rows}
        )
    return results
