"""What a recipe would take, found out without training anything: counted from names and shapes,
the time from about a second of steps of each arm where that is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from wuneng_cli.render import short_bytes

if TYPE_CHECKING:
    from wuneng.recipe import Recipe, Training
    from wuneng.tables import Table
    from wuneng.train.arms import ArmConfigs
    from wuneng.train.starting_point import Sources
    from wuneng.train.trainable import ArmSizes

__all__ = ["plan", "plan_lines", "plan_table", "sources_of"]


def plan(recipe: Recipe, *, measure: bool = False) -> dict[str, Any]:
    """Sizes and costs of every arm, ready for JSON.

    Args:
        measure: time some steps of every arm that trains; else ``seconds`` are None.

    Raises:
        DataError: files or a tokenizer that the recipe names are missing.
        RecipeError: an arm cannot be built or sized to match the first.
    """
    from wuneng.train.arms import ArmConfigs

    sources = sources_of(recipe)
    vocab_size = _vocab_size(recipe, sources)
    training = recipe.training
    configs = ArmConfigs(recipe, vocab_size, sources=sources)
    return {
        "schema": 1,
        "name": recipe.name,
        "recipe": recipe.model_dump(),
        "seeds": recipe.seeds,
        "vocab_size": vocab_size,
        "tokens_per_step": training.tokens_per_step,
        "steps": training.total_steps,
        "tokens": training.total_tokens,
        "arms": {name: _arm(recipe, name, configs, measure) for name in recipe.arms},
    }


def sources_of(recipe: Recipe, *, check: bool = True) -> Sources | None:
    """What finds and converts the models that a recipe names; None where it names none.

    ``check``: compare their files with their checksums before a conversion.
    """
    if recipe.source is None and not any(arm.distill for arm in recipe.arms.values()):
        return None
    from wuneng.convert import ConvertedSources

    return ConvertedSources(check=check)


def plan_table(planned: dict[str, Any]) -> Table:
    """What each arm is and takes, side by side."""
    from wuneng.tables import Column, Table

    arms = planned["arms"]
    columns = [Column("", name=True), *map(Column, arms)]
    table = Table(f"{planned['name']}: what it would take", columns, turns=True)
    for part in dict.fromkeys(part for arm in arms.values() for part in arm["parts"]):
        table.add_row(part, *(f"{arm['parts'].get(part, 0):,}" for arm in arms.values()))
    table.add_section()
    table.add_row("parameters", *(f"{arm['parameters']:,}" for arm in arms.values()))
    if any(arm["trainable_parameters"] != arm["parameters"] for arm in arms.values()):
        trainable = (f"{arm['trainable_parameters']:,}" for arm in arms.values())
        table.add_row("trainable parameters", *trainable)
    table.add_row(
        "state and middle heads add", *(f"{arm['added_percent']:.1f} %" for arm in arms.values())
    )
    table.add_row("feed-forward width", *(f"{arm['intermediate_size']:,}" for arm in arms.values()))
    _, *others = arms.values()
    table.add_row("matched by", "reference", *(arm["match"] for arm in others))
    table.add_row("training FLOPs", *(f"{arm['training_flops']:.2e}" for arm in arms.values()))
    table.add_row(
        "estimated memory", *(short_bytes(arm["memory"]["total"]) for arm in arms.values())
    )
    table.add_row("disk", *(short_bytes(arm["disk_bytes"]) for arm in arms.values()))
    table.add_row("estimated time", *(_duration(arm["seconds"]) for arm in arms.values()))
    return table


def plan_lines(planned: dict[str, Any]) -> Iterator[str]:
    """The length of the run, what all of it takes, and why a time is missing."""
    seeds, arms = planned["seeds"], planned["arms"]
    yield (
        f"each arm: {planned['tokens']:,} tokens, {planned['steps']:,} steps of "
        f"{planned['tokens_per_step']:,}; seed{'s' if len(seeds) > 1 else ''} "
        f"{', '.join(map(str, seeds))}; vocabulary {planned['vocab_size']:,}"
    )
    disk = len(seeds) * sum(arm["disk_bytes"] for arm in arms.values())
    times = [arm["seconds"] for arm in arms.values()]
    whole = f"all of it: {short_bytes(disk)} on disk"
    if None not in times:
        whole += (
            f", and about {_duration(len(seeds) * sum(times))} of training steps, measured here "
            "for a second each; data and validation come on top"
        )
        if any(arm["compile"] for arm in arms.values()):
            whole += " (measured without training.compile)"
    yield whole
    reasons = dict.fromkeys(arm["not_measured"] for arm in arms.values() if arm["not_measured"])
    yield from (f"time not measured: {reason}" for reason in reasons)


def _duration(seconds: float | None) -> str:
    """Two digits at most: it is an estimate."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 or not seconds else f"{seconds:.1f} s"
    for size, unit in ((86_400, "days"), (3_600, "h")):
        if seconds >= 1.5 * size:
            value = seconds / size
            return f"{value:,.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{seconds / 60:.0f} min"


def _arm(recipe: Recipe, name: str, configs: ArmConfigs, measure: bool) -> dict[str, Any]:
    from wuneng.model.counting import describe, memory_estimate, total_parameters
    from wuneng.train.trainable import arm_sizes

    config, teacher = configs(name), configs.teacher(name)
    sizes = arm_sizes(recipe, name, configs, teacher)
    training = recipe.arm_training(name)
    memory = memory_estimate(
        config,
        sequences=training.micro_batch_size or training.batch_size,
        sequence_length=training.sequence_length,
        activation_bytes=_activation_bytes(recipe, training),
        activation_checkpointing=training.activation_checkpointing,
    )
    memory["weights"] = 4 * (sizes.parameters + (total_parameters(teacher) if teacher else 0))
    memory["gradients"], memory["optimizer"] = 4 * sizes.trainable, 8 * sizes.trainable
    parts = describe(config)
    if sizes.parameters > parts["parameters"]:
        parts["parts"]["adapters"] = sizes.parameters - parts["parameters"]
    tokens = 0 if recipe.arms[name].train == "none" else training.total_tokens
    return {
        **parts,
        "parameters": sizes.parameters,
        "trainable_parameters": sizes.trainable,
        "intermediate_size": config.intermediate_size,
        "match": recipe.arms[name].match,
        "learning_rate": training.learning_rate,
        "training_flops": sizes.flops_per_token * tokens,
        "memory": {**memory, "total": sum(memory.values())},
        "compile": training.compile,
        "disk_bytes": _disk(sizes, training, trains=tokens > 0) + _copies(recipe, name, configs),
        **_time(recipe, name, configs, sizes.flops_per_token * tokens, measure),
    }


def _disk(sizes: ArmSizes, training: Training, *, trains: bool) -> int:
    """Bytes of one seed: the model, and the checkpoints that are kept (weights and moments)."""
    from wuneng.train.schedule import steps_before_decay

    checkpoint = 4 * sizes.parameters + 8 * sizes.trainable
    kept = training.keep_checkpoints
    if training.schedule == "wsd" and steps_before_decay(training.total_steps, training):
        kept += 1  # the one from before the decay, from which a longer run goes on
    return 4 * sizes.parameters + (kept * checkpoint if trains else 0)


def _copies(recipe: Recipe, name: str, configs: ArmConfigs) -> int:
    """Bytes of what the arm starts and learns from, where that is converted: at most float32.

    Arms and seeds that convert the same keep it once, if the disk can; this counts it for each.
    """
    from wuneng.model.counting import total_parameters
    from wuneng.train.distillation import teacher_name
    from wuneng.train.starting_point import PLAIN

    start, teacher = recipe.arms[name].init_from, teacher_name(recipe, name)
    config = configs.teacher(name)
    found = 0
    if start is not None and configs.sources.converts(start, recipe.arms[name].model):
        found += 4 * total_parameters(configs(name))
    if teacher is not None and config is not None and configs.sources.converts(teacher, PLAIN):
        found += 4 * total_parameters(config)
    return found


def _time(
    recipe: Recipe, name: str, configs: ArmConfigs, flops: float, measure: bool
) -> dict[str, Any]:
    """Seconds of one seed, and why there are none."""
    if not flops:
        return {"seconds": 0.0, "not_measured": ""}
    if not measure:
        return {"seconds": None, "not_measured": "--no-measure"}
    from wuneng.train.measured import measured_speed

    speed = measured_speed(recipe, name, configs(name))
    rate = speed.flops_per_second
    return {"seconds": None if rate is None else flops / rate, "not_measured": speed.not_measured}


def _activation_bytes(recipe: Recipe, training: Training) -> int:
    """Bytes of an activation. A recipe for a GPU can be planned on a machine that has none."""
    if training.precision != "auto":
        return 4 if training.precision == "fp32" else 2
    if recipe.device.startswith("cuda"):
        return 2
    from wuneng.device import autocast_dtype, pick_device

    device = pick_device("cpu" if recipe.device == "mps" else recipe.device)
    return 4 if autocast_dtype("auto", device) is None else 2


def _vocab_size(recipe: Recipe, sources: Sources | None) -> int:
    """Token ids that the data needs. Text is not read: files have to be there, that is all."""
    from wuneng.recipe import SOURCE_TOKENIZER, SyntheticData, TrainedTokenizer

    data = recipe.data
    if isinstance(data, SyntheticData):
        from wuneng.synthetic import prepare_synthetic

        training, evaluation = recipe.training, recipe.evaluation
        steps = training.total_steps
        return prepare_synthetic(data, training, evaluation, recipe.seeds[0], steps).vocab_size
    for field, source in (("data.train", data.train), ("data.validation", data.validation)):
        if isinstance(source, list):
            from wuneng.data.files import find_files

            find_files(source, field)
    if isinstance(data.tokenizer, TrainedTokenizer):
        return data.tokenizer.train_bpe
    if recipe.model.vocab_size is not None:
        # Said in the recipe: a tokenizer that would have to be fetched is not needed.
        return recipe.model.vocab_size
    from wuneng.data.tokenizer import byte_tokenizer, load_tokenizer

    if data.tokenizer == SOURCE_TOKENIZER and recipe.source is not None:
        from wuneng.train.starting_point import source_tokenizer

        return len(source_tokenizer(recipe.source, sources))
    tokenizer = byte_tokenizer() if data.tokenizer == "bytes" else load_tokenizer(data.tokenizer)
    return len(tokenizer)
