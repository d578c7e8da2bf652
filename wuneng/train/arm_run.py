"""One arm of a recipe from one seed: build, train, score, save.

The arm's ``result.json`` is written last; until then everything here is done again, from the last
checkpoint on, when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype
from wuneng.model.counting import describe
from wuneng.model.quiet import quiet_transformers
from wuneng.recipe import Recipe
from wuneng.records import CHECKSUMS, ArmDirectory, read_jsonl, refuse_links
from wuneng.records.atomic import directory_written_atomically, remove_leftovers
from wuneng.records.sharing import share_files
from wuneng.train.arms import ArmConfigs, has_token_shift, kind_of
from wuneng.train.display import Display
from wuneng.train.distillation import Teacher, teacher_name
from wuneng.train.loggers import open_loggers
from wuneng.train.loop import ArmJob, ArmTraining
from wuneng.train.lora import add_adapters, merge_adapters
from wuneng.train.quality import Quality, measure
from wuneng.train.results import ArmFacts, arm_record, save_record, save_rows
from wuneng.train.signals import Interrupted, StopSignals
from wuneng.train.starting_point import PLAIN, load_start
from wuneng.train.step import Numerics
from wuneng.train.trainable import arm_sizes, freeze, lora_ranks
from wuneng.train.trainer_state import TrainerState, seed_everything

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from wuneng.model import WuNengForCausalLM

__all__ = ["run_arm"]


def run_arm(
    recipe: Recipe,
    arm: str,
    seed: int,
    data: Prepared,
    place: ArmDirectory,
    device: torch.device,
    display: Display,
    configs: ArmConfigs,
    *,
    check: bool = True,
) -> None:
    """Train ``arm`` in ``place`` on ``data``, which stands at its first batch.

    Args:
        check: compare the models it starts from with their checksums.

    Raises:
        Interrupted: a signal came; the arm is saved.
        InputError, NonFiniteError, DiskError, CheckpointError: as ``wuneng.train.run``.
    """
    refuse_links(place.path, place.checkpoints, place.model, place.start, place.teacher)
    remove_leftovers(place.path)
    (place.path / CHECKSUMS).unlink(missing_ok=True)  # of files that are written anew
    facts = _facts(recipe, arm, configs)
    training = recipe.arm_training(arm)
    display.note(f"{arm} (seed {seed}): {_in_words(facts, training.total_steps)} on {device}")
    teacher = _teacher(recipe, arm, seed, place, device, configs, display, check)
    model = _model(recipe, arm, seed, place, configs, display, check).to(device)
    title = f"{recipe.name}/{arm}/seed-{seed}"
    job = ArmJob(
        arm=arm,
        seed=seed,
        model=model,
        training=training,
        train=data.train,
        validation=data.validation,
        data_description=data.description,
        directory=place,
        numerics=Numerics.pick(device, autocast_dtype(training.precision, device)),
        loggers=open_loggers(recipe.loggers, place.path, title),
        teacher=teacher,
    )
    state, quality = _train_and_score(job, data, recipe, display)
    if recipe.arms[arm].lora is not None:
        merge_adapters(model)
    _save_model(place, model, data.tokenizer)
    rows = read_jsonl(place.metrics)
    final_loss = rows[-1]["loss"] if rows else None
    save_rows(place, quality)
    save_record(place, arm_record(arm, facts, state, quality, final_loss))


def _model(
    recipe: Recipe,
    arm: str,
    seed: int,
    place: ArmDirectory,
    configs: ArmConfigs,
    display: Display,
    check: bool,
) -> WuNengForCausalLM:
    """The arm's model at its first step: drawn from the seed, or loaded, frozen and adapted."""
    settings = recipe.arms[arm]
    config = configs(arm)
    if settings.init_from is None:
        from wuneng.model import WuNengForCausalLM  # not needed for planning, and slow to import

        seed_everything(seed)
        return WuNengForCausalLM(config)
    start = configs.sources.directory(
        settings.init_from, settings.model, place.start, seed, display.note
    )
    _share_start(place, recipe, check)
    model = load_start(start, check=check)
    seed_everything(seed)  # after a conversion, which a resumed run does not repeat
    if settings.lora is not None:
        add_adapters(model, settings.lora, lora_ranks(recipe, arm, configs))
    freeze(model, settings, arm)
    return model


def _share_start(place: ArmDirectory, recipe: Recipe, check: bool) -> None:
    """Keep what several arms and seeds start from once, where they start from the same."""
    run = place.path.parent.parent if len(recipe.seeds) > 1 else place.path.parent
    directories = [run / arm / seed for arm in recipe.arms for seed in _seed_names(recipe)]
    copies = [directory / name for directory in directories for name in ("start", "teacher")]
    for own in (place.start, place.teacher):
        others = (copy for copy in copies if copy != own and copy.is_dir())
        share_files(own, others, check=check)


def _seed_names(recipe: Recipe) -> list[str]:
    return [f"seed-{seed}" for seed in recipe.seeds] if len(recipe.seeds) > 1 else [""]


def _teacher(
    recipe: Recipe,
    arm: str,
    seed: int,
    place: ArmDirectory,
    device: torch.device,
    configs: ArmConfigs,
    display: Display,
    check: bool,
) -> Teacher | None:
    name, settings = teacher_name(recipe, arm), recipe.arms[arm].distill
    if name is None or settings is None:
        return None
    directory = configs.sources.directory(name, PLAIN, place.teacher, seed, display.note)
    model = load_start(directory, check=check).to(device).eval().requires_grad_(False)
    return Teacher(model, settings)


def _train_and_score(
    job: ArmJob, data: Prepared, recipe: Recipe, display: Display
) -> tuple[TrainerState, Quality]:
    """The parts that take long, and so can be stopped by a signal."""
    try:
        what = f"arm {job.arm!r}, seed {job.seed},"
        with StopSignals(_stop_warning(display), what) as stop:
            if recipe.arms[job.arm].train == "none":
                state, leave_if_asked = TrainerState(job.arm, job.seed), _leaving(job, stop)
            else:
                story = ArmTraining(job, display, stop)
                state, leave_if_asked = story.run(), story.leave_if_asked
            quality = measure(
                job.model,
                data.final.batches(),
                job.numerics,
                micro_batch_size=recipe.evaluation.batch_size or job.training.micro_batch_size,
                before_batch=leave_if_asked,
            )
            return state, quality
    finally:
        for logger in job.loggers:
            logger.close()


def _leaving(job: ArmJob, stop: StopSignals) -> Callable[[], None]:
    """Raises Interrupted if a signal has come while an arm that does not train is scored."""

    def leave_if_asked() -> None:
        if stop.requested is not None:
            raise Interrupted(
                f"stopped by a signal while arm {job.arm!r}, seed {job.seed}, was scored",
                stop.requested,
            )

    return leave_if_asked


def _facts(recipe: Recipe, arm: str, configs: ArmConfigs) -> ArmFacts:
    config, settings = configs(arm), recipe.arms[arm]
    sizes = arm_sizes(recipe, arm, configs, configs.teacher(arm))
    return ArmFacts(
        kind=kind_of(config),
        token_shift=has_token_shift(config),
        parameters=sizes.parameters,
        trainable=sizes.trainable,
        added_percent=describe(config)["added_percent"],
        flops_per_token=sizes.flops_per_token,
        learning_rate=recipe.arm_training(arm).learning_rate,
        init_from=settings.init_from,
        trains="lora" if settings.lora else settings.train,
    )


def _in_words(facts: ArmFacts, steps: int) -> str:
    text = (
        f"{facts.parameters:,} parameters, state and middle heads add {facts.added_percent:.1f} %"
    )
    if facts.trains == "none":
        return f"{text}; scored as it is"
    if facts.trains != "all":
        text += f", {facts.trainable:,} train"
    return f"{text}; {steps:,} steps"


def _save_model(
    place: ArmDirectory, model: WuNengForCausalLM, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """``model/`` in transformers format, complete or not at all."""
    needed = sum(parameter.nbytes for parameter in model.parameters()) + (1 << 20)
    with directory_written_atomically(place.model, needed) as temporary, quiet_transformers():
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


def _stop_warning(display: Display) -> Callable[[str], None]:
    def warn(name: str) -> None:
        display.warn(f"{name}: finishing this step and saving; Ctrl-C (again) stops at once")

    return warn
