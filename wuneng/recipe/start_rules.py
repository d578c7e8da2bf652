"""Rules of the arms that start from a model: what contradicts itself in ``init_from``, ``train``,
``distill``, ``stages`` and ``lora``. The fields are in ``wuneng.recipe.upgrade`` and
``wuneng.recipe.stages``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from wuneng.errors import nearest
from wuneng.recipe.arms import REPLACING, Arm
from wuneng.recipe.consistency import Problem
from wuneng.recipe.stages import stage_problems

__all__ = ["upgrade_problems"]


def upgrade_problems(
    written: Mapping[str, Arm], resolved: Mapping[str, Arm], total_steps: int
) -> Iterator[Problem]:
    """What contradicts itself in how the arms start and what of them trains."""
    for name, arm in resolved.items():
        if arm.replace is None and arm.replace_of != "layers":
            yield ("arms", name, "replace_of"), "needs replace, the share of them"
        if arm.replace is not None:
            for text in _replace_problems(arm):
                yield ("arms", name, "replace"), text
        if arm.stages is not None:
            own = "stages" in written[name].model_fields_set
            start = ("arms", name, "stages") if own else ("stages",)
            for path, text in _stage_problems(arm, total_steps):
                yield (*start, *path), f"{text} (arm {name})"
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
        elif arm.lora is not None and arm.lora.match_in == "flops":
            for one in (arm, resolved[target]):
                if one.stages is not None or one.distill is not None:
                    yield (
                        ("arms", name, "lora", "match_in"),
                        f"expected parameters where {name} or {target} has stages or distill, "
                        "whose FLOPs are a teacher's too; got flops",
                    )
                    break


def _replace_problems(arm: Arm) -> Iterator[str]:
    if arm.init_from is None:
        yield "needs init_from, the model whose attention is replaced"
        return
    if arm.model.num_state_heads == 0 or arm.train == "none":
        yield "expected state heads that train: they stand in attention's place"
        return
    given = {field: getattr(arm.model, field) for field in REPLACING}
    wrong = [f"{field}: {value}" for field, value in given.items() if value != REPLACING[field]]
    if wrong:
        needs = ", ".join(f"{field}: {value}" for field, value in REPLACING.items())
        yield f"expected {needs}, for there is no attention to take from; got {', '.join(wrong)}"


def _stage_problems(arm: Arm, total_steps: int) -> Iterator[Problem]:
    if not arm.stages:
        yield (), "expected at least one stage, or null"
        return
    if arm.init_from is None:
        yield (), "needs init_from, the model to start from"
        return
    if arm.distill is not None:
        yield (), "expected none beside distill: a stage of that name says the same"
    new = [stage for stage in arm.stages if stage.kind != "tune"]
    if new and arm.model.num_state_heads == 0:
        yield (), f"{new[0].kind} trains state heads, and this arm has none: give it stages: null"
    for index, stage in enumerate(arm.stages):
        if stage.distill is not None and not stage.distill.ce and arm.replace is None:
            yield (
                (index, "distill", "ce"),
                "expected more than 0 where attention is not replaced: the silent branch that it "
                "starts as is its teacher, so there is nothing else to learn",
            )
    yield from stage_problems(
        arm.stages, total_steps, train=arm.train, has_lora=arm.lora is not None
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
    if arm.lora is not None and arm.train not in ("new", "lora", "new+lora"):
        yield (
            "train",
            "expected new where lora is set (its adapters are), or new+lora for new heads beside "
            f"them, got {arm.train}",
        )
    if arm.lora is None and arm.train in ("lora", "new+lora"):
        yield "train", f"{arm.train} needs lora, the adapters that it trains, which are not given"
    if arm.lora is None and arm.train == "new" and arm.model.num_state_heads == 0:
        yield (
            "train",
            "new means state and middle heads, or LoRA's adapters, and this arm has neither: "
            "give it lora, or train: none or all",
        )
    if arm.train == "none" and arm.distill is not None:
        yield "distill", "nothing learns from a teacher where train is none"
