"""The directory of a study that never was: four rungs, three arms, three seeds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from tests.report.made_up import write, write_run
from wuneng.statistics import tokens_saved

SEEDS = (3, 4, 5)
#: Size, tokens for each parameter.
RUNGS = {"300k-4": (3e5, 4.0), "300k-8": (3e5, 8.0), "1M-4": (1e6, 4.0), "1M-8": (1e6, 8.0)}
#: By arm, how many tokens it takes for what mha has learnt from one.
PACE = {"wuneng": 0.6, "mha": 1.0, "twin": 0.6}
LONGEST = 8e6  # tokens of the rung that was evaluated at its end alone
GAIN = {"wuneng": 0.97, "mha": 1.0, "twin": 0.9702}


def loss(arm: str, seed: int, parameters: float, tokens: float) -> float:
    luck = 1 + 0.002 * (seed - 4) + 0.0002 * (len(arm) - 4) * (seed % 2)
    return GAIN[arm] * luck * 30 * parameters**-0.12 * tokens**-0.08


def curve(arm: str, seed: int, tokens: float) -> list[tuple[float, float]]:
    """A power law, sooner by the arm's pace and the seed's luck."""
    evaluations = 1 if tokens == LONGEST else 20
    places = [tokens * (step + 1) / evaluations for step in range(evaluations)]
    luck = 1 + 0.03 * math.sin(5 * seed + len(arm))
    return [(place, 9 * (place / (PACE[arm] * luck)) ** -0.2) for place in places]


def saved(other: str, tokens: float) -> dict[str, Any] | None:
    """As results.json has it."""
    curves = [{seed: curve(arm, seed, tokens) for seed in SEEDS} for arm in ("wuneng", other)]
    found = tokens_saved(*curves)
    if found is None:
        return None
    # An earlier version wrote an upper end of what is only a bound.
    interval = [None, 0.0] if found.censored else found.interval
    told = {"saved": found.saved, "interval": interval}
    return told | {"orders": found.orders, "censored": found.censored}


def rung(name: str) -> dict[str, Any]:
    size, ratio = RUNGS[name]
    arms = {}
    for arm in GAIN:
        values = [loss(arm, seed, size, ratio * size) for seed in SEEDS]
        arms[arm] = {
            "kind": "attention",
            "parameters": size,
            "tokens": ratio * size,
            "seconds": 9.0,
            "training_flops": 6 * ratio * size**2,
            "tokens_per_second": 100.0,
            "cache_bytes": 64,
            "state_bytes": 0,
            "seeds": list(SEEDS),
            "per_seed": values,
            "mean": float(np.mean(values)),
            "spread": float(np.std(values, ddof=1)),
            "standard_error": float(stats.sem(values)),
            "exploratory": {},
            "tuned": {"training.learning_rate": 0.002},
            "at_edge": [],
        }
    differences = []
    for other in ("mha", "twin"):
        apart = np.subtract(arms["wuneng"]["per_seed"], arms[other]["per_seed"])
        interval = stats.ttest_1samp(apart, 0).confidence_interval(0.95)
        found = {"arms": ["wuneng", other], "difference": float(apart.mean()), "seeds": 3}
        found |= {"interval": [interval.low, interval.high], "test": "paired-t"}
        if other == "mha" and name != "1M-8":  # rows were not kept everywhere
            found["crossed"] = {
                "rows": 30,
                "interval": [2 * interval.low - 0.01, 0.01],
                "share_of_seeds": 0.4,
                "conclusion": "undecided",
            }
        found["tokens_saved"] = saved(other, ratio * size)
        differences.append(found | {"p": float(stats.ttest_1samp(apart, 0).pvalue)})
    tried = [{"values": {"training.learning_rate": 0.001}, "figures": {"wuneng": 2.5, "mha": None}}]
    return {
        "rung": name,
        "size": size,
        "tokens_per_parameter": ratio,
        "arms": arms,
        "directory": f"compare/{name}",
        "differences": differences,
        "tuning": {"grid": {"training.learning_rate": [0.001, 0.002]}, "tried": tried},
    }


def write_study(place: Path) -> dict[str, Any]:
    record = {
        "schema": 1,
        "kind": "study",
        "name": "made-up study",
        "reference": "wuneng",
        "plan": {"sha256": "0123abcd", "changes": ["study.seeds was 5"]},
        "match": "parameters",
        "primary": "text/bits_per_byte",
        "higher_is_better": False,
        "smallest_effect": 0.005,
        "rungs": [rung(name) for name in RUNGS],
        "summary": "By text/bits_per_byte, as planned.",
        "sentences": ["By text/bits_per_byte, as planned.", "At 1M-x4 more."],
    }
    place.mkdir(parents=True)
    write(place / "results.json", record)
    write_run(place / "compare" / "300k-4", name="300k-4")
    return record
