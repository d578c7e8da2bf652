"""Rules of the arms that start from a model: what contradicts itself in ``init_from``, ``train``,
``distill`` and ``lora``. The fields are in ``wuneng.recipe.upgrade``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wuneng.errors import nearest
from wuneng.recipe.arms import Arm
from wuneng.recipe.consistency import Problem

__all__ = ["upgrade_problems"]


def upgrade_problems(written: Mapping[str, Arm], resolved: Mapping[str, Arm]) -> Iterator[Problem]:
    """What contradicts itself in how the arms start and what of them trains."""
    for name, arm in resolved.items():
        for field, text in _arm_problems(arm):
            own = field in written[name].model_fields_set
            yield (("arms", name, field) if own else (field,)), f"{text} (arm {name})"
        target = None if arm.lora is None else arm.lora.match
        if target is None:
            continue
        others = [other for other in resolved if other != name and resolved[other].lora is None]
        if target not in others:
            yield (
                ("arms", name, "lora", "match"),
                f"expected another arm without lora ({', '.join(others)}), got {target!r}."
                f"{nearest(target, others)}",
            )


def _arm_problems(arm: Arm) -> Iterator[tuple[str, str]]:
    if arm.init_from is None:
        if arm.train != "all":
            yield "train", f"expected all where init_from is left out, got {arm.train}"
        for field in ("lora", "distill"):
            has_teacher = field == "distill" and arm.distill and arm.distill.teacher
            if getattr(arm, field) is not None and not has_teacher:
                yield field, "needs init_from, the model to start from"
        return
    if arm.match != "width":
        yield "match", f"expected width where init_from sets the sizes, got {arm.match}"
    if arm.lora is not None and arm.train != "new":
        yield "train", f"expected new where lora is set (its adapters are), got {arm.train}"
    if arm.lora is None and arm.train == "new" and arm.model.num_state_heads == 0:
        yield (
            "train",
            "new means state and middle heads, or LoRA's adapters, and this arm has neither: "
            "give it lora, or train: none or all",
        )
    if arm.train == "none" and arm.distill is not None:
        yield "distill", "nothing learns from a teacher where train is none"
