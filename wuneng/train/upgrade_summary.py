"""What a run shows that started from a model: against the untouched source, and against LoRA.

New heads train more parameters on more tokens than the untouched source has seen, so being better
than the source says little. A gain counts for them only where as many parameters in LoRA adapters,
trained on the same tokens, do not have it.

A difference is called one where it is ``clear`` (``differences``). With one seed it is one on these
rows, and credits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wuneng.statistics import NORMAL_95, t_quantile
from wuneng.train.differences import ON_THESE_ROWS, Difference, difference, in_numbers, spelled
from wuneng.train.verdicts import HYBRID, judged_names, verdict_can_be_given

__all__ = ["interval_rows", "is_upgrade", "upgrade_sentence"]

_SAME_SIZE = 0.02


def is_upgrade(results: Mapping[str, Any]) -> bool:
    """Whether the run has an untouched source and an arm that was trained from it."""
    trains = [arm.get("trains") for arm in results["arms"].values() if arm.get("init_from")]
    return "none" in trains and any(kind != "none" for kind in trains)


def interval_rows(results: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """For the table: each arm's 95 % interval of the judged figures, and its paired difference
    from the untouched source. Empty for runs that started from nothing."""
    if not is_upgrade(results):
        return []
    arms = results["arms"]
    source = _first(arms, "none")
    rows = []
    for names in judged_names(arms[source]["quality"]).values():
        for name in names:
            cells = [_interval_of(arm, name) for arm in arms.values()]
            rows.append((f"{name}, 95 % interval", cells))
            cells = [
                "" if arm == source else in_numbers(difference(results, arm, source, name))
                for arm in arms
            ]
            rows.append((f"{name} against {source}", cells))
    return rows


def upgrade_sentence(results: Mapping[str, Any]) -> str:
    """The gain over the source, whether LoRA has it too, and what the figures do not say."""
    arms = results["arms"]
    source, lora = _first(arms, "none"), _first(arms, "lora")
    trained = {n: a for n, a in arms.items() if a.get("trains") not in ("none", "lora")}
    trained = {n: a for n, a in trained.items() if "state_control" not in a}
    upgraded = next((name for name, arm in trained.items() if arm["kind"] == HYBRID), None)
    if upgraded is None:
        return "No arm with state heads was trained from the source, so nothing is compared here."
    clauses = []
    for task, names in judged_names(arms[upgraded]["quality"]).items():
        for name in names:
            text = f"{task}: {_clause(results, upgraded, source, name)}"
            if lora:
                text += f". {_against_lora(results, upgraded, lora, source, name)}"
            clauses.append(text)
    return f"{'. '.join(clauses)}. {_limits(results, upgraded, lora)}"


def _clause(results: Mapping[str, Any], arm: str, source: str, name: str) -> str:
    found = difference(results, arm, source, name)
    values = f"{arm} {_value(results, arm, name)}, {source} {_value(results, source, name)}"
    claim = f"{arm} is {'better' if found.better else 'worse'} than the source"
    if not found.clear:
        claim = "no difference beyond noise from the source"
    elif not verdict_can_be_given(results["arms"]):
        claim += ON_THESE_ROWS
    return f"{claim} ({values}, {spelled(found)})"


def _against_lora(results: Mapping[str, Any], arm: str, lora: str, source: str, name: str) -> str:
    found = difference(results, arm, lora, name)
    gained = difference(results, arm, source, name).gain > 0
    own, other = (results["arms"][n]["trainable_parameters"] for n in (arm, lora))
    sizes = f"{own:,} against {other:,} trained parameters"
    values = f"{lora} {_value(results, lora, name)}, {spelled(found)}, {sizes}"
    if not verdict_can_be_given(results["arms"]):
        return _beside_lora(found, values)
    if not found.clear:
        credit = "so the gain is credited to training that many parameters and not to the state"
        end = f", {credit}" if gained else ""
        return f"Against the LoRA control there is no difference beyond noise ({values}){end}"
    if not found.better:
        return (
            f"The LoRA control does better ({values}), so nothing is credited to the state and "
            "middle heads"
        )
    credit = "that part of the gain is credited to the state and middle heads as configured"
    end = credit if gained else "neither is better than the source"
    return f"It is also better than the LoRA control ({values}): {end}"


def _beside_lora(found: Difference, values: str) -> str:
    """One seed: the two as they are on these rows."""
    if not found.clear:
        return f"Against the LoRA control there is no difference beyond noise ({values})"
    worse = "worse" if found.better else "better"
    return f"The LoRA control is {worse}{ON_THESE_ROWS} ({values})"


def _limits(results: Mapping[str, Any], upgraded: str, lora: str | None) -> str:
    arms = results["arms"]
    seeds = len(arms[upgraded].get("seeds", ())) or 1
    tokens = f"{arms[upgraded]['tokens']:,.0f} tokens"
    text = (
        f"This is one seed, one learning rate per arm and {tokens}; the intervals are over "
        "validation rows and know nothing of other seeds, rates or sizes, so no verdict can be "
        "given and nothing is credited"
        if seeds == 1
        else f"These are means over {seeds} seeds at one learning rate per arm and {tokens}"
    )
    if lora is None:
        return (
            f"{text}; no LoRA control was trained, so nothing is credited to the state and middle "
            "heads."
        )
    apart = arms[lora]["trainable_parameters"] / arms[upgraded]["trainable_parameters"] - 1
    if abs(apart) > _SAME_SIZE:
        more = "more" if apart > 0 else "fewer"
        text += f"; {lora} has {abs(apart):.1%} {more} trainable parameters than {upgraded}"
    return f"{text}."


def _first(arms: Mapping[str, Mapping[str, Any]], trains: str) -> Any:
    return next((name for name, arm in arms.items() if arm.get("trains") == trains), None)


def _interval_of(arm: Mapping[str, Any], name: str) -> str:
    value = arm["quality"].get(name)
    if value is None:
        return "–"
    seeds = len(arm.get("seeds", ())) or 1
    half = (t_quantile(0.95, seeds - 1) if seeds > 1 else NORMAL_95) * arm["standard_error"][name]
    return f"{value - half:.3f} to {value + half:.3f}"


def _value(results: Mapping[str, Any], arm: str, name: str) -> str:
    return f"{results['arms'][arm]['quality'][name]:.4f}"
