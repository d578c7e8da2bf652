"""How a study's loss scales with size and tokens: the fit of every arm, its bands and its curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.report.plots import Line, lines
from wuneng.report.section import Picture, Section
from wuneng.statistics import Point, fit_scaling, scaling_bands

__all__ = ["scaling"]


def scaling(study: Mapping[str, Any]) -> Section | None:
    """Loss against size and tokens; only where there are several rungs, and lower is better."""
    arms = list(dict.fromkeys(arm for rung in study["rungs"] for arm in rung["arms"]))
    if study["higher_is_better"] or len(study["rungs"]) < 2:
        return None
    rows, series = [], []
    for arm in arms:
        entries = [entry for rung in study["rungs"] if (entry := rung["arms"].get(arm))]
        points = [
            Point(seed, entry["parameters"], entry["tokens"], loss)
            for entry in entries
            for seed, loss in zip(entry["seeds"], entry["per_seed"], strict=True)
        ]
        places = [(entry["parameters"], entry["tokens"]) for entry in entries]
        fit, bands = fit_scaling(points), scaling_bands(points, places)
        for number, entry in enumerate(entries):
            rows.append(
                {
                    "arm": arm,
                    "parameters": entry["parameters"],
                    "tokens": entry["tokens"],
                    "training_flops": entry["training_flops"],
                    "mean": entry["mean"],
                    "fitted": None if fit is None else fit.loss(*places[number]),
                    "low": None if bands is None else float(bands[number, 0]),
                    "high": None if bands is None else float(bands[number, 1]),
                    "offset": None if fit is None else fit.offset,
                    "alpha": None if fit is None else fit.alpha,
                    "beta": None if fit is None else fit.beta,
                }
            )
        series.append(_line(arm, [row for row in rows if row["arm"] == arm]))
    told = "; ".join(f"{line.name} {line.y[-1]:.4f} at {line.x[-1]:.2e}" for line in series)
    picture = Picture(
        str(study["primary"]),
        f"{study['primary']} against training FLOPs: {told}",
        lambda axis: lines(
            axis,
            series,
            arms,
            x="training FLOPs",
            y=str(study["primary"]),
            log_x=True,
            log_y=True,
        ),
    )
    text = (
        "L = E + C N^-alpha D^-beta, fitted to every seed of every rung; 95 % bands of the "
        "fitted loss (Student's t with the error of resampled seeds). Where sizes and tokens only "
        "grow together, or too few rungs differ, nothing is fitted.",
    )
    return Section("scaling", "Loss against size and tokens", text, tuple(rows), (picture,))


def _line(arm: str, rows: list[dict[str, Any]]) -> Line:
    ordered = sorted(rows, key=lambda row: row["training_flops"])
    x, y = ([row[key] for row in ordered] for key in ("training_flops", "mean"))
    if any(row["low"] is None for row in ordered):
        return Line(arm, x, y)
    return Line(arm, x, y, *([row[key] for row in ordered] for key in ("low", "high")))
