"""The answer in one sentence, with its interval, and the sentences that the records hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from wuneng.report.curves import saved_against
from wuneng.report.figures import headline, higher_is_better, loss_figures, pair_of, task_of
from wuneng.report.records import Records
from wuneng.report.section import Section, number, percent
from wuneng.statistics import Conclusion, PairedDifference, TokensSaved, conclude

__all__ = ["answer"]


def answer(records: Records) -> Section | None:
    """The figure that decides, main arm against baseline; else what the records conclude."""
    found = records.results or records.study or records.sweep or {}
    summary = found.get("summary")
    sentence, row = _headline(records)
    text = [sentence, *map(str, found.get("sentences") or [summary or ""])]
    if not found and records.metrics:
        text.append("The run is not finished: there are learning curves and no results yet.")
        text.append(how_far(records))
    told = tuple(line for line in text if line)
    return Section("answer", "Answer", told, (row,) if row else ()) if told else None


def how_far(records: Records) -> str:
    """How many steps each arm and seed that has begun has logged, and of how many."""
    training = (records.recipe or {}).get("training")
    steps = training.get("steps") if isinstance(training, Mapping) else None
    of = f" of {steps:,}" if isinstance(steps, int) else ""
    told = []
    for arm, seeds in records.metrics.items():
        for seed, rows in seeds.items():
            if rows and isinstance(rows[-1].get("step"), int):
                named = f"{arm} (seed {seed})" if len(seeds) > 1 else arm
                told.append(f"{named} at step {rows[-1]['step']:,}{of}")
    return f"So far: {', '.join(told)}." if told else ""


def _headline(records: Records) -> tuple[str, dict[str, Any]]:
    """The sentence and the numbers in it; empty where nothing was compared."""
    name, main, baseline = headline(records), records.main, records.baseline
    arms = records.arms
    if name is None or main not in arms or baseline not in arms:
        return "", {}
    assert main is not None
    assert baseline is not None
    ours, theirs = (arms[arm]["quality"].get(name) for arm in (main, baseline))
    if ours is None or theirs is None:
        return "", {}
    seeds = len(arms[main].get("seeds") or [0])
    paired = (records.results or {}).get("paired") or ()
    pair = pair_of(paired, main, baseline, name)
    share = records.smallest_effect
    margin = None if share is None else share * abs(float(ours))
    row = {"figure": name, "arm": main, "value": ours, "against": baseline, "other": theirs}
    low, high = (pair or {}).get("interval") or (None, None)
    row |= {"difference": ours - theirs if pair is None else pair["difference"]}
    row |= {"low": low, "high": high, "seeds": seeds, "smallest_effect": margin}
    words = f"{main} has {number(float(ours))} in {name}, {baseline} {number(float(theirs))}"
    if low is not None and high is not None:
        gain = row["difference"]
        words += f" (difference {gain:+z.4g}, 95 % interval {low:+z.4g} to {high:+z.4g})"
    saved = _saved(records, main, baseline, name)
    if saved is not None:
        row |= {"tokens_saved": saved.saved}
        words += f"; {_in_words(saved, main, baseline)}"
    row["conclusion"] = _conclusion(pair, margin, seeds, higher_is_better(name))
    return f"{words}: {row['conclusion']}.", row


def _conclusion(
    pair: Mapping[str, Any] | None, margin: float | None, seeds: int, higher: bool
) -> str:
    if seeds < 2:
        return "one seed, so no verdict can be given"
    if pair is None or pair.get("standard_error") is None:
        return "nothing was paired, so no verdict can be given"
    low, high = pair["interval"]
    found = PairedDifference(
        *(pair["difference"], pair["standard_error"], low, high, pair["p"], "paired-t"),
        freedom=pair.get("seeds", seeds) - 1,
    )
    said = conclude(found, margin, higher_is_better=higher)
    over = f"over {seeds} seeds"
    return {
        Conclusion.BETTER: f"better, {over}",
        Conclusion.WORSE: f"worse, {over}",
        Conclusion.EQUIVALENT: f"no difference that matters, {over}",
        Conclusion.UNDECIDED: f"no difference is shown, {over}",
    }[said]


def _saved(records: Records, main: str, baseline: str, name: str) -> TokensSaved | None:
    """By the curve of the task that decides."""
    figures = [
        figure
        for rows in next(iter(records.metrics.values()), {}).values()
        for row in rows
        for figure in row.get("validation") or ()
        if task_of(figure) == task_of(name)
    ]
    curve = next(iter(loss_figures(figures)), None)
    return None if curve is None else saved_against(records, main, baseline, curve)


def _in_words(saved: TokensSaved, main: str, baseline: str) -> str:
    """``wuneng needs 38.2 % fewer tokens for mha's loss (95 % interval ...)``."""
    share = percent(abs(saved.saved))
    if saved.censored and saved.saved <= 0:
        return f"{main} does not reach {baseline}'s loss in as many tokens"
    words = f"{share} {'fewer' if saved.saved >= 0 else 'more'} tokens for {baseline}'s loss"
    if saved.censored:
        return f"{main} needs at most {words}"
    words = f"{main} needs {words}"
    if saved.interval is not None and all(math.isfinite(end) for end in saved.interval):
        low, high = (percent(end) for end in saved.interval)
        words += f" (95 % interval of the saving {low} to {high})"
    return words
