"""What ``wuneng convert`` tells of a conversion: the proof, and what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wuneng.convert import Check
    from wuneng.tables import Table

__all__ = ["checks_table", "is_same", "same_line", "summary"]


def is_same(check: Check) -> bool:
    """Whether there is nothing to look at: within what is allowed, or, where nothing is, equal."""
    return check.passed and not (check.tolerance is None and check.max_abs_logit_difference)


def same_line(checks: list[Check]) -> str:
    """What was compared, and how far the furthest logit is from the source's."""
    names = "; ".join(dict.fromkeys(check.name for check in checks))
    told = []
    for dtype in dict.fromkeys(check.dtype for check in checks):
        own = [check for check in checks if check.dtype == dtype]
        apart = max(check.max_abs_logit_difference for check in own)
        allowed = min((c.tolerance for c in own if c.tolerance is not None), default=None)
        limit = "" if allowed is None else f" ({allowed:.2g} allowed)"
        told.append(f"{apart:.3g} in {dtype}{limit}")
    return (
        f"The same logits as the source's in {len(checks)} checks ({names}); furthest "
        f"apart: {', '.join(told)}. --verbose shows each."
    )


def checks_table(checks: list[Check]) -> Table:
    """One row for each comparison of logits."""
    from wuneng.tables import Column, Table

    headings = ("tokens", "max |Δ logit|", "allowed", "same argmax", "KL (nats)", "verdict")
    names = [Column("", name=True), Column("dtype", name=True)]
    table = Table("converted against source", [*names, *map(Column, headings)])
    for check in checks:
        table.add_row(
            check.name,
            check.dtype,
            str(check.positions),
            f"{check.max_abs_logit_difference:.3g}",
            "" if check.tolerance is None else f"{check.tolerance:.2g}",
            f"{100 * check.argmax_agreement:.1f} %",
            f"{check.kl:.3g}",
            "for information" if check.tolerance is None else "same" if check.passed else "DIFFERS",
        )
    return table


def summary(record: dict[str, Any]) -> list[str]:
    """What changed, in a few lines."""
    tensors = record["tensors"]
    dropped = tensors["dropped"]
    lines = [
        f"{record['what']}: {record['source']}",
        f"  parameters  {record['parameters']:,}",
        f"  tensors     {tensors['kept']:,} kept, {tensors['new']:,} new, {len(dropped):,} dropped",
        f"  files       {', '.join(record['copied_files']) or 'none copied'}",
    ]
    if record["added_parameters"]:
        lines[1] += (
            f", of them {record['added_parameters']:,} in state and middle heads "
            f"(+{record['added_percent']:.2f} %)"
        )
    reasons = sorted(set(dropped.values()))
    lines += [f"  dropped     {sum(r == why for r in dropped.values())}: {why}" for why in reasons]
    if record.get("state_from"):
        start = record["state_from"]
        lines.append(
            f"  warm start  {len(start['tensors'])} tensors of {start['from']}, not an equivalence"
        )
    if record.get("without_tokenizer"):
        lines.append(f"  tokenizer   none: {record['without_tokenizer']}")
    if not record["verified"]:
        lines.append("  not verified: logits were not compared (--no-verify)")
    return lines
