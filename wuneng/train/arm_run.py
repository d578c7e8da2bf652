"""One arm of a recipe from one seed: build, train, score, save.

The arm's ``result.json`` is written last; until then everything here is done again, from the last
checkpoint on, when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from transformers.utils import logging as transformers_logging

from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype
from wuneng.model import WuNengConfig, WuNengForCausalLM
from wuneng.model.counting import describe, training_flops_per_token
from wuneng.recipe import Recipe
from wuneng.records import ArmDirectory, read_jsonl
from wuneng.train.arms import arm_config, has_token_shift, kind_of
from wuneng.train.atomic import directory_written_atomically, remove_leftovers
from wuneng.train.display import Display
from wuneng.train.loggers import open_loggers
from wuneng.train.loop import ArmJob, ArmTraining
from wuneng.train.quality import Quality, measure
from wuneng.train.results import ArmFacts, arm_record, save_record
from wuneng.train.signals import StopSignals
from wuneng.train.step import Numerics
from wuneng.train.trainer_state import TrainerState, seed_everything

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["run_arm"]


def run_arm(
    recipe: Recipe,
    arm: str,
    seed: int,
    data: Prepared,
    place: ArmDirectory,
    device: torch.device,
    display: Display,
) -> None:
    """Train ``arm`` in ``place`` on ``data``, which stands at its first batch.

    Raises:
        Interrupted: a signal came; the arm is saved.
        RecipeError, NonFiniteError, DiskError, CheckpointError: as ``wuneng.train.run``.
    """
    remove_leftovers(place.path)
    config = arm_config(recipe, arm, data.vocab_size, data.tokenizer)
    facts = _facts(recipe, arm, config)
    training = recipe.arm_training(arm)
    display.note(
        f"{arm} (seed {seed}): {facts.parameters:,} parameters, state and middle heads add "
        f"{facts.added_percent:.1f} %; {training.total_steps:,} steps on {device}"
    )
    seed_everything(seed)
    model = WuNengForCausalLM(config).to(device)
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
    )
    state, quality = _train_and_score(job, data, recipe, display)
    _save_model(place, model, data.tokenizer)
    rows = read_jsonl(place.metrics)
    final_loss = rows[-1]["loss"] if rows else None
    save_record(place, arm_record(arm, facts, state, quality, final_loss))


def _train_and_score(
    job: ArmJob, data: Prepared, recipe: Recipe, display: Display
) -> tuple[TrainerState, Quality]:
    """The parts that take long, and so can be stopped by a signal."""
    try:
        with StopSignals(_stop_warning(display)) as stop:
            story = ArmTraining(job, display, stop)
            state = story.run()
            quality = measure(
                job.model,
                data.final.batches(),
                job.numerics,
                micro_batch_size=recipe.evaluation.batch_size or job.training.micro_batch_size,
                before_batch=story.leave_if_asked,
            )
            return state, quality
    finally:
        for logger in job.loggers:
            logger.close()


def _facts(recipe: Recipe, arm: str, config: WuNengConfig) -> ArmFacts:
    counts = describe(config)
    settings = recipe.arm_model(arm)
    return ArmFacts(
        kind=kind_of(settings),
        token_shift=has_token_shift(settings),
        parameters=counts["parameters"],
        added_percent=counts["added_percent"],
        flops_per_token=training_flops_per_token(config, recipe.training.sequence_length),
        learning_rate=recipe.arm_training(arm).learning_rate,
    )


def _save_model(
    place: ArmDirectory, model: WuNengForCausalLM, tokenizer: PreTrainedTokenizerFast | None
) -> None:
    """``model/`` in transformers format, complete or not at all."""
    needed = sum(parameter.nbytes for parameter in model.parameters()) + (1 << 20)
    with directory_written_atomically(place.model, needed) as temporary, _no_progress_bars():
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """transformers draws one for every file it writes, across our own panel."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _stop_warning(display: Display) -> Callable[[str], None]:
    def warn(name: str) -> None:
        display.warn(f"{name}: finishing this step and saving; Ctrl-C (again) stops at once")

    return warn
