"""The directory of a run that never was: three arms, three seeds, every kind of record."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from wuneng.statistics import crossed_components, crossed_difference, paired_by_seed

SEEDS = (3, 4, 5)
KINDS = {"wuneng": "hybrid", "no-middle": "hybrid", "mha": "attention"}
PACE = {"wuneng": 0.6, "no-middle": 0.8, "mha": 1.0}
TEXT, LENGTHS = "text/bits_per_byte", (64, 128, 256)


def loss(arm: str, seed: int, tokens: float) -> float:
    """A power law, sooner by the arm's pace and the seed's luck."""
    luck = 1 + 0.02 * math.sin(7 * seed + len(arm))
    return 20 * (tokens / (PACE[arm] * luck)) ** -0.25


def write_run(place: Path, *, seeds: tuple[int, ...] = SEEDS, name: str = "made-up") -> Path:
    """A finished run with learning curves, results, tasks, controls and a benchmark."""
    for arm in KINDS:
        for seed in seeds:
            directory = place / arm / f"seed-{seed}" if len(seeds) > 1 else place / arm
            directory.mkdir(parents=True)
            rows = [
                {"arm": arm, "seed": seed, "step": step, "tokens": 1000 * step, "loss": 9.0}
                | {"validation": {TEXT: loss(arm, seed, 1000.0 * step)}}
                for step in range(1, 41)
            ]
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (directory / "metrics.jsonl").write_text(lines, encoding="utf-8")
            write(
                directory / "rows.json", {"schema": 2, "rows": {"text": {"64": rows_of(arm, seed)}}}
            )
    recipe = ["model: {hidden_size: 32}", "arms:"]
    recipe += ["  wuneng: {model: {num_state_heads: 2}}"]
    recipe += ["  no-middle: {model: {num_state_heads: 2, cross_head: none}}"]
    recipe += ["  mha: {model: {num_state_heads: 0}}"]
    (place / "recipe.yaml").write_text("\n".join(recipe) + "\n", encoding="utf-8")
    write(place / "results.json", results(name, seeds))
    write(place / "environment.json", ENVIRONMENT)
    write(place / "eval.json", EVALUATION)
    write(place / "controls.json", CONTROLS)
    write(place / "bench.json", BENCH)
    return place


def write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")


def rows_of(arm: str, seed: int) -> dict[str, list[float]]:
    """The text of the end evaluation, row by row: together what the arm scores."""
    places = np.arange(30)
    sizes = 40 + 7 * (places % 5)
    hard = 1 + 0.3 * np.sin(places) + 0.01 * np.cos(3 * places + len(arm) + 0.1 * seed)
    hard *= sizes.sum() / (hard * sizes).sum()
    nats = loss(arm, seed, 40_000.0) * math.log(2) * hard * sizes
    return {"nats": nats.tolist(), "right": [0] * 30, "tokens": [64] * 30, "bytes": sizes.tolist()}


def crossed(first: str, second: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Over seeds and rows at once, as results.json has it of text."""
    rows = {arm: [rows_of(arm, seed) for seed in seeds] for arm in (first, second)}
    tables = [-np.array([one["nats"] for one in rows[arm]]) for arm in (first, second)]
    given: dict[str, Any] = {"weights": np.array(rows[first][0]["bytes"]), "scale": "bits"}
    found, split = crossed_difference(*tables, **given), crossed_components(*tables, **given)
    entry = {"rows": 30, "standard_error": found.stderr, "interval": [found.low, found.high]}
    entry |= {"p": found.p, "freedom": found.freedom}
    return {"crossed": entry | {"share_of_seeds": split.share_of_seeds}}


def results(name: str, seeds: tuple[int, ...]) -> dict[str, Any]:
    figures = [TEXT, *(f"recall/accuracy@{length}" for length in LENGTHS)]
    scored = {
        arm: {seed: {f: _score(arm, seed, f) for f in figures} for seed in seeds} for arm in KINDS
    }
    arms = {arm: _entry(arm, scored[arm], figures) for arm in KINDS}
    paired = []
    for first, second in combinations(KINDS, 2) if len(seeds) > 1 else ():
        for figure in figures:
            one, other = (np.array([scored[a][s][figure] for s in seeds]) for a in (first, second))
            found = paired_by_seed(one, other)
            entry = {"arms": [first, second], "figure": figure, "difference": found.difference}
            entry |= {"standard_error": found.stderr, "interval": [found.low, found.high]}
            entry |= {"p": found.p, "test": found.test, "seeds": len(seeds)}
            paired.append(entry | (crossed(first, second, seeds) if figure == TEXT else {}))
    record: dict[str, Any] = {"schema": 1, "name": name, "reference": "wuneng", "arms": arms}
    return record | {"paired": paired, "summary": f"What {name} shows."}


def _score(arm: str, seed: int, figure: str) -> float:
    if figure == TEXT:
        return loss(arm, seed, 40_000.0)
    return round(0.9 - PACE[arm] / 3 - int(figure.rpartition("@")[2]) / 2000 + seed / 500, 6)


def _entry(arm: str, scored: dict[int, dict[str, float]], figures: list[str]) -> dict[str, Any]:
    values = {f: np.array([one[f] for one in scored.values()]) for f in figures}
    spread = {f: float(v.std(ddof=1)) for f, v in values.items()} if len(scored) > 1 else None
    return {
        "kind": KINDS[arm],
        "parameters": 100_000 + 10 * len(arm),
        "training_flops": 1e12 / PACE[arm],
        "tokens": 40_000,
        "cache_bytes": 8192,
        "state_bytes": 0 if KINDS[arm] == "attention" else 512 + len(arm),
        "seconds": 12.5 / PACE[arm],
        "tokens_per_second": 3200.0 * PACE[arm],
        "quality": {f: float(v.mean()) for f, v in values.items()},
        "standard_error": {f: float(v.std()) / 2 + 0.001 for f, v in values.items()},
        "seeds": list(scored),
        **({} if spread is None else {"quality_std": spread}),
    }


ENVIRONMENT = {
    "schema": 1,
    "command_line": ["wuneng", "train", "my recipe.yaml", "--set", "training.steps=40"],
    "python": "3.12.1",
    "cores": 2,
    "accelerators": [],
    "packages": {"torch": "2.13.0"},
}


def _metric(model: float, baseline: float, p: float) -> dict[str, Any]:
    difference = model - baseline
    found = {"model": model, "model_stderr": 0.01, "baseline": baseline, "baseline_stderr": 0.01}
    found |= {"difference": difference, "difference_stderr": 0.02}
    found |= {"ci95": [difference - 0.04, difference + 0.04], "p": p, "p_holm": min(1.0, 2 * p)}
    return found | {"test": "mcnemar-exact", "higher_is_better": True}


def _level(hops: int, model: float, baseline: float) -> dict[str, Any]:
    own = {"value": hops, "n": 40, "chance": 0.25}
    return own | {"metrics": {"acc": _metric(model, baseline, 0.1)}}


EVALUATION = {
    "schema": 1,
    "models": {"model": {"label": "wuneng"}, "baseline": {"label": "mha"}},
    "settings": {"state": "keep"},
    "tasks": {
        "copa": {"n": 100, "chance": 0.5, "metrics": {"acc": _metric(0.6, 0.5, 0.04)}},
        "chain": {
            "n": 80,
            "chance": 0.25,
            "metrics": {"acc": _metric(0.7, 0.55, 0.03)},
            "by_level": {"name": "hops", "levels": [_level(1, 0.9, 0.8), _level(2, 0.5, 0.3)]},
        },
        "arc": {"n": 50, "chance": 0.25, "metrics": {"acc": _metric(0.3, 0.35, 0.5)}},
    },
    "notes": ["a note of the evaluation"],
    "environment": {"command_line": ["wuneng", "eval", "runs/made-up"]},
}

_HEADS = [[{"difference": -0.5, "ci95": None}, {"difference": 0.01, "ci95": None}], [None, None]]
CONTROLS = {
    "schema": 1,
    "tasks": {
        "parity": {
            "n": 64,
            "metrics": {
                "accuracy@64": {
                    "value": 0.98,
                    "higher_is_better": True,
                    "controls": {
                        "zero": {"value": 0.5, "difference": -0.48, "ci95": [-0.52, -0.44]}
                        | {"p": 1e-9, "p_holm": 2e-9},
                        "reset:4": {"value": 0.6, "difference": -0.38, "ci95": None}
                        | {"p": 1e-7, "p_holm": 1e-7},
                        "reset:16": {"value": 0.9, "difference": -0.08, "ci95": None}
                        | {"p": 1e-3, "p_holm": 1e-3},
                        "frozen:8": {"value": 0.7, "difference": -0.28, "ci95": None}
                        | {"p": 1e-5, "p_holm": 1e-5},
                        "donor": {"value": 0.97, "difference": -0.01, "ci95": None}
                        | {"p": 0.7, "p_holm": 0.7},
                    },
                    "heads": {"state": _HEADS},
                }
            },
        }
    },
    "attribution": [{"sentence": "parity: the gain is the state's."}],
    "environment": {"command_line": ["wuneng", "eval", "runs/made-up", "--controls", "all"]},
}


def _bench_row(arm: str, length: int, what: str, milliseconds: float | None) -> dict[str, Any]:
    row = {"what": what, "operation": "step", "arm": arm, "seq_len": length, "batch": 1}
    row |= {"dtype": "fp32", "status": "ok" if milliseconds else "skipped"}
    peak = None if milliseconds is None else int(1e6 * len(arm)) + length
    return row | {"median_ms": milliseconds, "spread_ms": 0.1, "peak_bytes": peak}


BENCH = {
    "schema": 1,
    "environment": {"command_line": ["wuneng", "bench", "--out", "runs/made-up"]},
    "sentences": ["train: wuneng is slower than mha at every length."],
    "rows": [
        _bench_row("wuneng", 64, "train", 1.5),
        _bench_row("wuneng", 128, "train", 3.0),
        _bench_row("mha", 64, "train", 1.0),
        _bench_row("mha", 128, "train", 2.5),
        _bench_row("mha", 256, "train", None),
    ],
}
