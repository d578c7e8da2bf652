"""Proof that a converted model computes what its source does, one model in memory at a time."""

from __future__ import annotations

import gc
import math
from pathlib import Path

import torch

from wuneng.convert.comparison import Check, compare, informative
from wuneng.convert.plan import main_dtype
from wuneng.convert.probe import Answers, Probe, ask, ask_reference
from wuneng.convert.rwkv7 import Rwkv7
from wuneng.convert.rwkv7_reference import Rwkv7Reference
from wuneng.convert.tensor_files import SafetensorsFiles

__all__ = ["answers_of", "check_against_model", "check_against_rwkv7", "dtypes_to_check"]

#: Models above this many bytes in float32 are compared in the target dtype alone.
_SMALL = 1 << 30
#: The token loop and the chunked kernel order their sums differently, layer after layer: what is
#: allowed of models too large to be run in float64 as well.
_RECURRENCE_SLACK = 10.0


def dtypes_to_check(stored: torch.dtype, target: torch.dtype, parameters: int) -> list[torch.dtype]:
    """The target dtype, and float32 too where the model is small enough for it.

    A source that is rounded on the way is rounded first on both sides, so only the target dtype
    can show what the conversion itself did.
    """
    if target == torch.float32 or 4 * parameters > _SMALL or _narrower(target, stored):
        return [target]
    return [torch.float32, target]


def check_against_model(
    source: Path, converted: Path, probe: Probe, target: torch.dtype, parameters: int
) -> list[Check]:
    """Compare two transformers directories on ``probe``.

    Both run in the same dtype, so that conversion alone can make a difference; what rounding to
    another dtype costs is reported beside it.
    """
    checks: list[Check] = []
    stored = main_dtype(SafetensorsFiles.of_directory(source))
    small = 4 * parameters <= _SMALL
    for dtype in dtypes_to_check(stored, target, parameters):
        expected = answers_of(source, dtype, probe)
        got = answers_of(converted, dtype, probe)
        found = compare(expected, got, dtype)
        if not all(check.passed for check in found) and dtype == torch.float32 and small:
            found = compare(expected, got, dtype, exact=answers_of(source, torch.float64, probe))
        checks += found
    if _narrower(target, stored):
        name = "full forward"
        before, after = (
            answers_of(p, d, probe)[name] for p, d in ((source, stored), (converted, target))
        )
        label = f"{_short(stored)} to {_short(target)}"
        checks.append(informative("rounding alone", before, after, label))
    return checks


def check_against_rwkv7(
    source: Rwkv7, converted: Path, probe: Probe, target: torch.dtype
) -> list[Check]:
    """Compare with RWKV-7's recurrence written out on the source's own tensors, in float32.

    What that loses is measured against float64 where the model is small enough.
    """
    expected = ask_reference(Rwkv7Reference(source).logits, probe)
    tensors = source.source.tensors.values()
    exact = None
    if 4 * sum(math.prod(info.shape) for info in tensors) <= _SMALL:
        exact = ask_reference(Rwkv7Reference(source, torch.float64).logits, probe)
    got = answers_of(converted, torch.float32, probe)
    if target != torch.float32:
        rounded = answers_of(converted, target, probe)["full forward"]
        label = f"float32 to {_short(target)}"
        extra = [informative("rounding alone", expected["full forward"], rounded, label)]
    else:
        extra = []
    # Weights that were stored in another dtype than the target's differ by that rounding.
    same_bits = all(not _narrower(target, info.dtype) for info in tensors)
    kind = torch.float32 if same_bits else target
    slack = _RECURRENCE_SLACK if exact is None else 1.0
    return compare(expected, got, kind, exact=exact, slack=slack) + extra


def answers_of(directory: Path, dtype: torch.dtype, probe: Probe) -> Answers:
    """The answers of the model in ``directory``; the model is gone again afterwards.

    Raises:
        ModelError: the directory does not load completely.
    """
    from wuneng.model.pretrained import load_whole_model

    model = load_whole_model(directory, dtype=dtype).eval()
    if dtype == torch.float64 and getattr(model.config, "num_experts", None):
        model.set_experts_implementation("eager")  # the usual one has no float64
    try:
        return ask(model, probe)
    finally:
        del model
        gc.collect()


def _narrower(target: torch.dtype, stored: torch.dtype) -> bool:
    """Whether casting ``stored`` to ``target`` can lose something."""
    if target == stored:
        return False
    wide = (torch.float32, torch.float64)
    return not (target in wide and stored not in (target, torch.float64))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
