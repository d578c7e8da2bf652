"""One arm of a recipe from one seed: build, train, score, save.

The arm's ``result.json`` is written last; until then everything here is done again, from the last
checkpoint on, when the run is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wuneng.controls.company import InCompany
from wuneng.controls.names import KEEP, Control
from wuneng.data.batch import Prepared
from wuneng.device import autocast_dtype
from wuneng.distributed.processes import ALONE, Processes
from wuneng.distributed.whole import outline_of, whole_model
from wuneng.distributed.wrapping import cut
from wuneng.errors import InputError
from wuneng.hub import copy_papers
from wuneng.model.cache_bytes import sequence_bytes
from wuneng.model.quiet import quiet_transformers
from wuneng.recipe import Parallel, TextData
from wuneng.records import CHECKSUMS, ArmDirectory, RunDirectory, read_jsonl, refuse_links
from wuneng.records.atomic import directory_written_atomically, remove_leftovers
from wuneng.records.sharing import share_files
from wuneng.train.arm_job import ArmJob
from wuneng.train.display import Display
from wuneng.train.distillation import Teacher
from wuneng.train.loggers import open_loggers
from wuneng.train.loop import ArmTraining
from wuneng.train.lora import add_adapters, merge_adapters
from wuneng.train.model_card import write_arm_card
from wuneng.train.outline import RunOutline
from wuneng.train.plan import ArmFacts, ArmPlan, RunPlan, TeacherPlan
from wuneng.train.quality import Quality, measure
from wuneng.train.replacing import begin_replacing, without_attention
from wuneng.train.results import arm_record, save_record, save_rows
from wuneng.train.signals import Interrupted, StopSignals, stop_warning
from wuneng.train.spread import arm_degrees, cut_dtypes, writes_shards
from wuneng.train.starting_point import PLAIN, Sources, load_start
from wuneng.train.step import Numerics
from wuneng.train.step_range import StepRange
from wuneng.train.trainable import freeze, lower_frozen
from wuneng.train.trainer_state import TrainerState, seed_everything

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from wuneng.model import WuNengForCausalLM

__all__ = ["Session", "run_arm"]


@dataclass(frozen=True)
class Session:
    """What a process brings to a run."""

    run: RunDirectory
    device: torch.device
    display: Display
    check: bool = True
    """Compare finished arms, and the models that arms start from, with their checksums."""
    processes: Processes = ALONE
    """That train each unit together."""
    parallel: Parallel = field(default_factory=Parallel)
    """How they share an arm."""
    profile: StepRange | None = None
    """Steps of each unit that are profiled."""


def run_arm(plan: RunPlan, arm: ArmPlan, seed: int, data: Prepared, session: Session) -> None:
    """Train ``arm`` in its directory on ``data``, which stands at its first batch.

    Raises:
        Interrupted: a signal came; the arm is saved.
        InputError, NonFiniteError, DiskError, CheckpointError: as ``wuneng.train.run``.
    """
    device, display, processes = session.device, session.display, session.processes
    place = plan.outline.place(session.run, arm.name, seed)
    processes.first(lambda: _clear(place))
    degrees = arm_degrees(arm, session.parallel, processes, device)
    steps = arm.training.total_steps
    where = f"{device}, {processes.size} processes ({degrees})" if processes.size > 1 else device
    display.note(f"{arm.name} (seed {seed}): {_in_words(arm.facts, steps)} on {where}")
    teacher = None
    if arm.teacher is not None:
        known = arm.teacher
        teacher = processes.one_first(lambda: _teacher(known, seed, place, plan.sources, session))
    model, start = processes.one_first(
        lambda: _model(arm, seed, place, plan.sources, plan.outline, session)
    )
    outline = outline_of(model) if degrees.shard > 1 else None
    model = model.to(device)
    precision = autocast_dtype(arm.training.precision, device)
    cut(model, processes, degrees, device, **cut_dtypes(session.parallel, precision))
    numerics = Numerics.pick(device, precision, processes, degrees)
    control = Control(arm.facts.state)
    if control.needs_company:
        data = replace(data, validation=InCompany(data.validation), final=InCompany(data.final))
    job = ArmJob(
        arm=arm.name,
        seed=seed,
        model=model,
        training=arm.training,
        train=data.train,
        validation=data.validation,
        data_description=data.description,
        directory=place,
        numerics=numerics.capturing() if arm.training.cuda_graph else numerics,
        loggers=open_loggers(
            plan.loggers if processes.is_first else (),
            place.path,
            f"{plan.outline.name}/{arm.name}/seed-{seed}",
        ),
        teacher=teacher,
        phases=arm.phases if any(phase.kind for phase in arm.phases) else (),
        teacher_cache=_teacher_cache(plan, arm),
        in_company=control.needs_company,
        shards=writes_shards(session.parallel, degrees),
        profile=session.profile,
        flops_per_token=arm.facts.flops_per_token,
    )
    rows_at_once = plan.evaluation.batch_size or arm.training.micro_batch_size
    if control.needs_company:
        rows_at_once = None
    with _under(control, model):
        state, quality = _train_and_score(job, data, display, rows_at_once, trains=arm.trains)
    found = whole_model(outline, model, keep=processes.is_first) if outline is not None else model

    def leave() -> None:
        nonlocal found
        assert found is not None
        if arm.adapters is not None:
            merge_adapters(found.float())  # weights held in bf16 would round what is added
        if arm.replaced:
            found = without_attention(found, arm.replaced, arm.kept_heads)
        rows = read_jsonl(place.metrics)
        if arm.training.keep_best and state.best:
            state.best["kept"] = True
        kept = sequence_bytes(found.config, arm.training.sequence_length)
        record = arm_record(arm.name, arm.facts, kept, state, quality, final_loss(rows))
        with _saved_model(place, found, data.tokenizer) as written:
            if start is not None:
                copy_papers(start, written, card=start != place.start)
            write_arm_card(session.run, plan.outline.name, record, written, start)
        save_rows(place, quality)
        save_record(place, record)

    processes.first(leave)


def _under(control: Control, model: WuNengForCausalLM) -> AbstractContextManager[None]:
    if control == KEEP:
        return nullcontext()
    from wuneng.controls.switch import controlled  # not needed for planning, and slow to import

    return controlled(model, control)


def _teacher_cache(plan: RunPlan, arm: ArmPlan) -> Path | None:
    if not any(phase.teacher_top_k for phase in arm.phases):
        return None
    from wuneng.data.cache_directory import cache_root

    return cache_root(plan.data.cache_dir if isinstance(plan.data, TextData) else None)


def _clear(place: ArmDirectory) -> None:
    """Ready to be trained in, whatever an earlier process left."""
    refuse_links(place.path, place.checkpoints, place.model, place.start, place.teacher)
    remove_leftovers(place.path)
    (place.path / CHECKSUMS).unlink(missing_ok=True)  # of files that are written anew
    place.failed.unlink(missing_ok=True)  # it is tried once more


def final_loss(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The last loss among rows of metrics.jsonl; that of a skipped batch may be no number."""
    return next((row["loss"] for row in reversed(rows) if row.get("loss") is not None), None)


def _model(
    arm: ArmPlan,
    seed: int,
    place: ArmDirectory,
    sources: Sources,
    outline: RunOutline,
    session: Session,
) -> tuple[WuNengForCausalLM, Path | None]:
    """The arm's model at its first step: drawn from the seed, or loaded from the directory that is
    returned with it, frozen and adapted."""
    if arm.init_from is None:
        from wuneng.model import WuNengForCausalLM  # not needed for planning, and slow to import

        seed_everything(seed)
        return WuNengForCausalLM(arm.config), None
    note = session.display.note
    start = sources.directory(arm.init_from, arm.settings, place.start, seed, note)
    _share_start(place, list(outline.places(session.run)), session.check)
    model = load_start(start, check=session.check)
    if arm.replaced:
        begin_replacing(model, arm.replaced, arm.kept_heads)
    seed_everything(seed)  # after a conversion, which a resumed run does not repeat
    if arm.adapters is not None:
        add_adapters(model, arm.adapters.settings, arm.adapters.ranks)
    freeze(model, arm.trainable)
    if arm.training.frozen_precision == "bf16":
        _check_lowered(arm, session.device)
        lower_frozen(model)
    return model, start


def _check_lowered(arm: ArmPlan, device: torch.device) -> None:
    if autocast_dtype(arm.training.precision, device) is not torch.bfloat16:
        raise InputError(
            f"training.frozen_precision: bf16 needs arithmetic in bf16, which precision "
            f"{arm.training.precision} is not on {device}: set training.precision to bf16"
        )


def _share_start(place: ArmDirectory, everyone: Sequence[ArmDirectory], check: bool) -> None:
    """Keep what several arms and seeds start from once, where they start from the same."""
    copies = [copy for other in everyone for copy in (other.start, other.teacher)]
    for own in (place.start, place.teacher):
        others = (copy for copy in copies if copy != own and copy.is_dir())
        share_files(own, others, check=check)


def _teacher(
    plan: TeacherPlan, seed: int, place: ArmDirectory, sources: Sources, session: Session
) -> Teacher:
    note = session.display.note
    directory = sources.directory(plan.source, PLAIN, place.teacher, seed, note)
    model = load_start(directory, check=session.check).to(session.device)
    return Teacher(model.eval().requires_grad_(False), plan.settings)


def _train_and_score(
    job: ArmJob, data: Prepared, display: Display, rows_at_once: int | None, *, trains: bool
) -> tuple[TrainerState, Quality]:
    """The parts that take long, and so can be stopped by a signal."""
    try:
        what = f"arm {job.arm!r}, seed {job.seed},"
        with StopSignals(lambda name: display.warn(stop_warning(name)), what) as stop:
            if trains:
                training = ArmTraining(job, display, stop)
                state, leave_if_asked = training.run(), training.leave_if_asked
            else:
                state, leave_if_asked = TrainerState(job.arm, job.seed), _leaving(job, stop)
            quality = measure(
                job.model,
                data.final.batches(),
                job.numerics,
                micro_batch_size=rows_at_once,
                before_batch=leave_if_asked,
            )
            return state, quality
    finally:
        for logger in job.loggers:
            logger.close()


def _leaving(job: ArmJob, stop: StopSignals) -> Callable[[], None]:
    """Raises Interrupted if a signal has come while an arm that does not train is scored."""

    def leave_if_asked() -> None:
        number = job.numerics.processes.agreed_signal(stop.requested)
        if number is not None:
            raise Interrupted(
                f"stopped by a signal while arm {job.arm!r}, seed {job.seed}, was scored", number
            )

    return leave_if_asked


def _in_words(facts: ArmFacts, steps: int) -> str:
    text = (
        f"{facts.parameters:,} parameters, state and middle heads add {facts.added_percent:.1f} %"
    )
    if facts.trains == "none":
        return f"{text}; scored as it is"
    if facts.trains != "all":
        text += f", {facts.trainable:,} train"
    if facts.state != "keep":
        text += f", a control whose state is under {facts.state}"
    return f"{text}; {steps:,} steps"


@contextmanager
def _saved_model(
    place: ArmDirectory, model: WuNengForCausalLM, tokenizer: PreTrainedTokenizerFast | None
) -> Iterator[Path]:
    """``model/`` in transformers format, to put more into; complete or not at all."""
    needed = sum(parameter.nbytes for parameter in model.parameters()) + (1 << 20)
    with directory_written_atomically(place.model, needed) as temporary:
        with quiet_transformers():
            model.save_pretrained(temporary)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)
        yield temporary
