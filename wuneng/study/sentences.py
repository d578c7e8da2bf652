"""What a study found, in sentences: over all rungs, at each, and what must be known beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from wuneng.recipe.sweep import written

__all__ = ["apart", "study_sentences"]


def study_sentences(record: Mapping[str, Any]) -> list[str]:
    """The answer first, then what every arm came to at every rung, and what that does not show.

    Args:
        record: results.json of a study, these sentences not yet in it.
    """
    plan = record["plan"]
    told = [f"By {record['primary']}, as planned ({plan['sha256'][:12]}): {_overall(record)}."]
    told += [_rung_sentence(record, rung) for rung in record["rungs"]]
    told += _on_other_rows(record)
    told += [f"Changed after the plan was written: {change}." for change in plan["changes"]]
    told += _at_edge(record)
    return [*told, "Other figures are exploratory."]


def _overall(record: Mapping[str, Any]) -> str:
    """The first arm against each other one, over all rungs: the verdict, and the tokens saved, or
    how far they are apart where that is not known."""
    first = record["reference"]
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for rung in record["rungs"]:
        for one in rung["differences"]:
            found.setdefault(one["arms"][1], []).append((rung["rung"], one))
    if not found:
        return "nothing could be compared"
    return "; ".join(_against(first, other, rungs) for other, rungs in found.items())


def _against(first: str, other: str, rungs: list[tuple[str, Mapping[str, Any]]]) -> str:
    verdicts: dict[str, list[str]] = {}
    for rung, one in rungs:
        verdicts.setdefault(_WORDS.get(one["conclusion"], one["conclusion"]), []).append(rung)
    alone = len(verdicts) == 1
    where = " at every size and length" if alone and len(rungs) > 1 else ""
    told = ", ".join(
        words.format(first=first, other=other) + (where if alone else f" at {' and '.join(places)}")
        for words, places in verdicts.items()
    )
    known = [(rung, one["tokens_saved"]) for rung, one in rungs if one.get("tokens_saved")]
    if not known:
        return f"{told}: a difference of {_apart_at(rungs)}"
    return f"{told}, and {first} needs {_needed(known, len(rungs))} for {other}'s loss"


def _apart_at(rungs: list[tuple[str, Mapping[str, Any]]]) -> str:
    """Each rung's difference; the rung is named where there are several."""
    return " and ".join(
        apart(one) + (f" at {rung}" if len(rungs) > 1 else "") for rung, one in rungs
    )


def _needed(known: list[tuple[str, Mapping[str, Any]]], rungs: int) -> str:
    """The tokens saved; of several rungs the least and the most, where they were."""
    if rungs == 1:
        return _share(known[0][1])
    ordered = sorted(known, key=lambda one: (not _never(one[1]), one[1]["saved"]))
    ends = [f"{_share(saved)} at {rung}" for rung, saved in (ordered[0], ordered[-1])]
    return ends[0] if len(known) == 1 else f"from {ends[0]} to {ends[1]}"


def _share(saved: Mapping[str, Any]) -> str:
    """``45% fewer tokens (95 % interval 38% to 51%)``; of what is only a bound there is none."""
    share, interval = saved["saved"], saved["interval"]
    if _never(saved):
        return "more tokens than it had"
    fewer = share >= 0
    told = f"{abs(share):.0%} {'fewer' if fewer else 'more'} tokens"
    if saved["censored"]:
        return f"at {'most' if fewer else 'least'} {told}"
    if interval is None or interval[0] is None:
        return told
    low, high = interval if fewer else (-interval[1], -interval[0])
    return f"{told} (95 % interval {low:z.0%} to {high:z.0%})"


def _never(saved: Mapping[str, Any]) -> bool:
    """From no seed was the other arm's loss reached."""
    return bool(saved["censored"] == saved["orders"])


_WORDS = {
    "better": "{first} is better than {other}",
    "worse": "{first} is worse than {other}",
    "undecided": "{first} against {other} is undecided",
    "no difference that matters": "{first} and {other} do not differ by what matters",
}


def _at_edge(record: Mapping[str, Any]) -> Iterator[str]:
    for rung in record["rungs"]:
        for arm, entry in rung["arms"].items():
            for path in (entry or {}).get("at_edge", ()):
                yield (
                    f"At {rung['rung']} {arm}'s best {path} "
                    f"({written(entry['tuned'][path])}) still lies at the edge of what was tried."
                )


def _on_other_rows(record: Mapping[str, Any]) -> Iterator[str]:
    """Where what fresh seeds allow to be said does not hold for fresh rows as well."""
    for rung in record["rungs"]:
        for found in rung["differences"]:
            said = (found.get("crossed") or {}).get("conclusion", found["conclusion"])
            if said != found["conclusion"]:
                first, other = found["arms"]
                words = _WORDS.get(said, said).format(first=first, other=other)
                yield f"At {rung['rung']}, over fresh rows as well as fresh seeds, {words}."


def _rung_sentence(record: Mapping[str, Any], rung: Mapping[str, Any]) -> str:
    first = record["reference"]
    ours = rung["arms"].get(first)
    if ours is None:
        return f"At {rung['rung']} {first} diverged, so nothing is compared."
    told = [f"{first} {ours['mean']:.4f}"]
    differences = {found["arms"][1]: found for found in rung["differences"]}
    for arm, entry in rung["arms"].items():
        if arm == first:
            continue
        if entry is None:
            told.append(f"{arm} diverged")
            continue
        told.append(f"{arm} {entry['mean']:.4f} ({_verdict(differences[arm])})")
    return f"At {rung['rung']} over {len(ours['seeds'])} seeds {'; '.join(told)}."


def _verdict(found: Mapping[str, Any]) -> str:
    first, other = found["arms"]
    text = {
        "better": f"{first} is better",
        "worse": f"{other} is better",
        "undecided": "undecided",
    }.get(found["conclusion"], found["conclusion"])
    text += f", {apart(found)}"
    if crossed := found.get("crossed"):
        low, high = crossed["interval"]
        text += f"; over fresh rows too: {low:+.4f} to {high:+.4f}"
    saved = found.get("tokens_saved")
    if saved is None:
        return text
    share, interval = saved["saved"], saved["interval"]
    text += f"; tokens saved {'at most ' if saved['censored'] else ''}{share:+z.0%}"
    if interval is None or interval[0] is None:
        return text
    return f"{text} ({interval[0]:+.0%} to {interval[1]:+.0%})"


def apart(found: Mapping[str, Any]) -> str:
    """A difference with its interval."""
    text = f"{found['difference']:+z.4f}"
    if found["interval"] is None:
        return text
    low, high = found["interval"]
    return f"{text} ({low:+.4f} to {high:+.4f})"
