"""One conversion, whatever its direction: what is written, and how it is proved.

A *builder* for each direction (``transformer``, ``pure_state``, ``export``, ``distributed``) fills
a :class:`Conversion`; :func:`carry_out` writes it to a temporary directory, verifies it there and
puts it in place with one rename.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wuneng.convert.companions import check_same_tokens, copy_companions
from wuneng.convert.comparison import Check, require_all, worst
from wuneng.convert.generation_file import leave_out_unfit
from wuneng.convert.model_card import conversion_card
from wuneng.convert.plan import Plan
from wuneng.convert.probe import Probe, make_probe
from wuneng.convert.shard_writer import bytes_of, write_shards
from wuneng.convert.source import Located
from wuneng.convert.verify import check_against_model
from wuneng.errors import InputError
from wuneng.hub import CARD, card_text
from wuneng.model import WuNengConfig
from wuneng.model.counting import ADDED_PARTS, added_percent, parameters_by_part
from wuneng.records import usable_directory, write_json, write_text_atomic
from wuneng.records.atomic import directory_written_atomically

__all__ = ["MARGIN", "RECORD", "Conversion", "Outcome", "carry_out", "check_destination"]

RECORD = "convert.json"
MARGIN = 16 << 20  # room for tokenizer, configuration and record when free space is checked
Note = Callable[[str], None]
Verify = Callable[[Path, Probe], list[Check]]


@dataclass
class Conversion:
    """What is to be written.

    Attributes:
        what: the direction in words, as ``llama to wuneng``.
        source: the label of the source.
        place: the source itself, a directory or a file.
        config: of the destination.
        counted: the WuNeng configuration whose added parameters the record states; None where the
            destination has no such parts.
        plan: the destination's tensors.
        dtype: of the destination's weights.
        companions: the directory that tokenizer and the like come from; None without one.
        verify: proves a written directory; gets the probe.
        write: writes whatever is not weights, configuration or companions.
        details: more for convert.json, evaluated after everything is written.
    """

    what: str
    source: str
    place: Path
    config: Any
    counted: WuNengConfig | None
    plan: Plan
    dtype: torch.dtype
    companions: Path | None
    verify: Verify
    write: Callable[[Path], None] = lambda _: None
    details: Callable[[], dict[str, Any]] = dict
    notes: list[str] = field(default_factory=list)


def same_function(
    located: Located,
    what: str,
    config: Any,
    plan: Plan,
    dtype: torch.dtype,
    *,
    counted: WuNengConfig | None = None,
    verify: Verify | None = None,
    **more: Any,
) -> Conversion:
    """A conversion of a model directory into one that computes the same.

    Its tokenizer and the like come along, and its logits are the proof.

    Args:
        verify: another proof.
        more: further fields of the conversion.
    """
    parameters = sum(math.prod(entry.shape) for shard in plan.shards for entry in shard)

    def same_logits(written: Path, probe: Probe) -> list[Check]:
        return check_against_model(located.path, written, probe, dtype, parameters)

    return Conversion(
        what=what,
        source=located.label,
        place=located.path,
        config=config,
        counted=counted,
        plan=plan,
        dtype=dtype,
        companions=located.path,
        verify=verify or same_logits,
        **more,
    )


@dataclass(frozen=True)
class Outcome:
    """A finished conversion.

    Attributes:
        directory: the destination.
        record: the content of convert.json.
        checks: the verification's; empty when there was none.
        uploaded: the address of the commit on the hub; None where nothing was uploaded.
    """

    directory: Path
    record: dict[str, Any]
    checks: list[Check]
    uploaded: str | None = None


def check_destination(destination: Path) -> None:
    """Prove that ``destination`` can be made.

    Raises:
        InputError: something is there already (an empty directory may be), or nothing can be made
            there.
        DiskError: the disk is full.
    """
    usable_directory(destination.parent, "DESTINATION")
    try:
        os.lstat(destination.with_name(f".partial-replaced-{destination.name}"))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise InputError(f"DESTINATION {destination}: {os.strerror(error.errno or 0)}") from error
    empty = destination.is_dir() and not any(destination.iterdir())
    if os.path.lexists(destination) and (destination.is_symlink() or not empty):
        raise InputError(
            f"{destination} exists already; name a directory that does not, or delete it first"
        )


def carry_out(
    conversion: Conversion,
    destination: Path,
    *,
    verify: bool,
    note: Note,
    repository: str | None = None,
) -> Outcome:
    """Write, prove, and rename into place; on any failure nothing is left behind.

    Args:
        repository: where the result goes on the hub, for its card.

    Raises:
        VerificationError: the logits differ by more than the tolerance.
        ModelError: a tensor is broken, or the source does not load.
        DiskError: the disk is full or refuses.
    """
    plan = conversion.plan
    size = bytes_of(plan.shards)
    for line in conversion.notes:
        note(line)
    with directory_written_atomically(destination, size + MARGIN) as temporary:
        note(f"{conversion.what}: writing {size / 2**20:,.1f} MiB")
        conversion.config.dtype = conversion.dtype
        conversion.config.save_pretrained(temporary)
        write_shards(temporary, plan.shards)
        copied = copy_companions(conversion.companions, conversion.place, temporary)
        conversion.write(temporary)
        if isinstance(conversion.config, WuNengConfig) and (left := leave_out_unfit(temporary)):
            note(left)
        checks: list[Check] = []
        inputs = None
        if verify:
            origin = conversion.companions or temporary
            tokenizer = check_same_tokens(origin, temporary)
            probe = make_probe(conversion.config, tokenizer)
            inputs = probe.kind
            note(f"comparing logits on {probe.rows.numel()} tokens of {probe.kind}")
            checks = conversion.verify(temporary, probe)
            require_all(checks)
        record = _record(conversion, checks, inputs, copied)
        write_json(temporary / RECORD, record)
        card = conversion_card(
            record, conversion.place, conversion.config.to_dict(), repository=repository
        )
        write_text_atomic(temporary / CARD, card_text(card, temporary))
    return Outcome(destination, record, checks)


def _record(
    conversion: Conversion, checks: list[Check], inputs: str | None, copied: list[str]
) -> dict[str, Any]:
    plan = conversion.plan
    figures: dict[str, Any] = dict.fromkeys(
        ("max_abs_logit_difference", "argmax_agreement", "kl"), None
    )
    if checks:
        figures = dict(worst(checks))
    parameters = sum(torch.Size(e.shape).numel() for shard in plan.shards for e in shard)
    added, percent = 0, 0.0
    if conversion.counted is not None:
        parts = parameters_by_part(conversion.counted)
        added = sum(parts[name] for name in ADDED_PARTS)
        percent = added_percent(parts) if added < sum(parts.values()) else 100.0
    return {
        "schema": 1,
        "what": conversion.what,
        "source": conversion.source,
        **figures,
        "parameters": parameters,
        "added_parameters": added,
        "added_percent": percent,
        "dtype": str(conversion.dtype).removeprefix("torch."),
        "verified": bool(checks),
        "verified_on": inputs,
        "checks": [check.record() for check in checks],
        "tensors": {
            "kept": len(plan.kept),
            "new": len(plan.new),
            "dropped": plan.dropped,
        },
        "copied_files": copied,
        **conversion.details(),
    }
