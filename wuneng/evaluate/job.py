"""What one evaluation keeps from one model, or one control, to the next: tasks, items, settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wuneng.controls.names import KEEP, Control
from wuneng.controls.switch import controlled, why_not
from wuneng.data.files import find_files
from wuneng.errors import ModelError, TaskError
from wuneng.evaluate.harness import run_tasks
from wuneng.evaluate.harness_model import HarnessModel
from wuneng.evaluate.loading import (
    LoadedModel,
    has_tokenizer,
    load_model,
    load_tokenizer,
    without_tokenizer,
)
from wuneng.evaluate.outcomes import TaskOutcomes, pooled
from wuneng.evaluate.own_questions import OwnQuestions
from wuneng.evaluate.perplexity import (
    BLOCK_BYTES,
    ValidationText,
    open_validation,
    run_validation,
    same_tokens,
)
from wuneng.evaluate.reader import open_reader
from wuneng.evaluate.synthetic import SyntheticRows, open_synthetic, run_synthetic
from wuneng.evaluate.task_loading import LoadedTasks, load_tasks
from wuneng.evaluate.tasks import QUESTIONS, SYNTHETIC, VALIDATION
from wuneng.recipe import QuestionFields, TextData, load_recipe
from wuneng.records import RunDirectory, run_of, verify
from wuneng.records.scratch import scratch_directory

if TYPE_CHECKING:
    import torch

__all__ = ["EvaluationRequest", "Job", "prepared"]


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how.

    Attributes:
        model, baseline: transformers directories; no baseline: figures of the model alone.
        tasks: names as `tasks.select_tasks` takes them, "validation" and "synthetic".
        data_dir: local evaluation files instead of the tasks' data sets.
        include_path: a directory of lm-evaluation-harness task files of one's own.
        fields: what the rows of one's own questions call their parts; None as the run's recipe
            says, or the usual names.
        lengths: tokens of the texts that long-context tasks make, counted by MODEL's tokenizer.
        limit: the first so many items of each task.
        num_fewshot: examples before each question; None leaves each task's own number.
        batch_size: sequences per forward call, or "auto".
        state: name of a control of the model's state, as `controls.names` has them; the baseline
            always runs as it is.
        dtype: "auto" (as stored), "fp32", "bf16" or "fp16".
        log_samples: keep what was asked and answered, item by item.
        check: compare the models' files, and the recipe of the run that validation text comes
            from, with their checksums.
    """

    model: Path
    tasks: Sequence[str]
    baseline: Path | None = None
    data_dir: Path | None = None
    include_path: Path | None = None
    fields: QuestionFields | None = None
    lengths: Sequence[int] | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    batch_size: int | str = "auto"
    state: str = "keep"
    dtype: str = "auto"
    log_samples: bool = False
    check: bool = True


@contextmanager
def prepared(
    request: EvaluationRequest,
    device: torch.device,
    *,
    notify: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> Iterator[Job]:
    """Everything that is asked of a model, found before any is loaded; arguments and errors as
    :func:`wuneng.evaluate.session.run_evaluation`.
    """
    if request.check:
        verify(request.model)
        if request.baseline is not None:
            verify(request.baseline)
    names = [name for name in request.tasks if name not in (VALIDATION, SYNTHETIC)]
    if request.tasks and not names:
        _refuse_options_of_tasks(request)
    if names or VALIDATION in request.tasks:
        for path in (request.model, request.baseline):
            # A model that is not even there is reported when it is loaded.
            if path is not None and any(path.glob("*.safetensors")) and not has_tokenizer(path):
                raise ModelError(without_tokenizer(path))
    with scratch_directory(".wuneng-eval-") as workspace:
        loaded = LoadedTasks([], {}, {}, [])
        if names or not request.tasks:
            loaded = load_tasks(
                names,
                data_dir=request.data_dir,
                workspace=workspace,
                num_fewshot=request.num_fewshot,
                include_path=request.include_path,
                reader=open_reader(request.model),
                lengths=request.lengths,
                limit=request.limit,
                own=_own_questions(request) if QUESTIONS in names else None,
                on_full_index=lambda: notify(
                    "not all of the tasks are in the common suite: indexing every task "
                    "(this takes some seconds)"
                ),
            )
        text = _validation_text(request) if VALIDATION in request.tasks else None
        rows = None
        if SYNTHETIC in request.tasks:
            rows = open_synthetic(_run_of(request), limit=request.limit)
        job = Job(request, loaded, text, rows, device, notify, progress, list(loaded.notes))
        if text is not None and not text.by_row:
            job.notes.append(
                f"{VALIDATION}: the two tokenizers differ, so items are stretches of "
                f"{BLOCK_BYTES} bytes and perplexity per token would not compare."
            )
        yield job


def _own_questions(request: EvaluationRequest) -> OwnQuestions:
    """As asked for, else as the recipe of the run says."""
    run = _run_of(request)
    data = load_recipe(run.recipe).data if run is not None else None
    learned = data.questions if isinstance(data, TextData) else None
    files: list[Path] = []
    if learned is not None and isinstance(data, TextData) and isinstance(data.validation, list):
        files = find_files(data.validation, "data.validation")
    return OwnQuestions(request.fields or learned or QuestionFields(), tuple(files))


def _run_of(request: EvaluationRequest) -> RunDirectory | None:
    """The run whose data is scored, its recipe verified."""
    paths = [path for path in (request.model, request.baseline) if path is not None]
    run = next((run for run in map(run_of, paths) if run is not None), None)
    if run is not None and request.check:
        verify(run.path, [run.recipe.name])
    return run


def _validation_text(request: EvaluationRequest) -> ValidationText:
    paths = [path for path in (request.model, request.baseline) if path is not None]
    run = _run_of(request)
    tokenizers = [load_tokenizer(path) for path in paths]
    by_row = True
    if len(tokenizers) == 2 and tokenizers[0] is not None and tokenizers[1] is not None:
        by_row = same_tokens(tokenizers[0], tokenizers[1])
    return open_validation(run, by_row=by_row, limit=request.limit)


@dataclass
class Job:
    """What stays the same from one model to the next."""

    request: EvaluationRequest
    tasks: LoadedTasks
    text: ValidationText | None
    rows: SyntheticRows | None
    device: torch.device
    notify: Callable[[str], None]
    progress: bool
    notes: list[str] = field(default_factory=list)

    def load(self, path: Path) -> LoadedModel:
        """A model, ready to be scored. Errors as :func:`wuneng.evaluate.loading.load_model`."""
        return load_model(path, device=self.device, dtype=self.request.dtype, check=False)

    def why_not(self, loaded: LoadedModel, control: Control) -> str | None:
        """Why a model cannot be scored on these tasks under a control; None where it can."""
        generating = [
            name
            for name, task in self.tasks.tasks.items()
            if task.get_config("output_type") == "generate_until"
        ]
        if control.kind == "layers" and generating:
            return (
                f"{generating[0]} lets the model write, and another layer's state is known over "
                "whole texts only"
            )
        return why_not(loaded.model, control)

    def score(self, loaded: LoadedModel, control: Control = KEEP) -> list[TaskOutcomes]:
        """A model's outcomes on every task, in the order asked for, under a control.

        TaskError where model, tasks and control do not fit together.
        """
        if control != KEEP and (reason := self.why_not(loaded, control)):
            raise TaskError(f"--state {control}: {reason}.")
        found: list[TaskOutcomes] = []
        with controlled(loaded.model, control):
            if self.rows is not None:
                found += run_synthetic(
                    loaded,
                    self.rows,
                    dtype=self.request.dtype,
                    in_company=control.needs_company,
                )
            if self.tasks.tasks or self.text is not None:
                found += self._read(loaded, control)
        return found

    def _read(self, loaded: LoadedModel, control: Control) -> list[TaskOutcomes]:
        """What is text: the harness' tasks, and the validation text."""
        model = HarnessModel(
            loaded,
            self.request.batch_size,
            progress=self.progress,
            companion=control.needs_company,
            share=not control.needs_whole_texts,
        )
        found = self._run(model)
        remark = f"{loaded.label}: {loaded.remark}." if loaded.remark else ""
        for line in [*([remark] if remark else []), *_remarks(labelled(loaded, control), model)]:
            if line not in self.notes:  # said once where a model is its own baseline
                self.notes.append(line)
        return found

    def _run(self, model: HarnessModel) -> list[TaskOutcomes]:
        found: list[TaskOutcomes] = []
        if self.tasks.tasks:
            by_task = run_tasks(
                model,
                self.tasks,
                limit=self.request.limit,
                log_items=self.request.log_samples,
            )
            found += _in_order(self.tasks, by_task)
        if self.text is not None:
            found.append(run_validation(model, self.text))
        return found


def labelled(loaded: LoadedModel, control: Control) -> str:
    """How lines of text call a model under a control."""
    if control == KEEP:
        return loaded.label
    return f"{loaded.label} ({'state ' if control.of_state else ''}{control})"


def _in_order(loaded: LoadedTasks, by_task: dict[str, TaskOutcomes]) -> list[TaskOutcomes]:
    """As asked for: a pooled group, then its parts."""
    found: dict[str, TaskOutcomes] = {}
    for selection in loaded.selections:
        parts = [by_task[leaf] for leaf in selection.leaves]
        if selection.pool and len(parts) > 1:
            found.setdefault(selection.name, pooled(selection.name, parts))
        for part in parts:
            found.setdefault(part.task, part)
    return list(found.values())


def _remarks(label: str, model: HarnessModel) -> list[str]:
    remarks = []
    if model.truncated_requests:
        remarks.append(
            f"{label}: {model.truncated_requests:,} questions were cut from the left to fit its "
            f"context of {model.max_length} tokens; the longest kept {model.least_kept:.0%} of "
            "its tokens."
        )
    if model.merged_requests:
        remarks.append(
            f"{label}: its tokenizer merges {model.merged_requests} answers into the end of the "
            "question; they are scored from where the two encodings part."
        )
    return remarks


def _refuse_options_of_tasks(request: EvaluationRequest) -> None:
    """TaskError for an option that would do nothing, where no task of the harness is asked for."""
    given = {
        "--data-dir": request.data_dir,
        "--include-path": request.include_path,
        "--num-fewshot": request.num_fewshot,
        "--lengths": request.lengths,
        "--fields": request.fields,
    }
    if idle := [option for option, value in given.items() if value is not None]:
        raise TaskError(
            f"{idle[0]} is for tasks of lm-evaluation-harness and questions, and --tasks asks for "
            f"{' and '.join(request.tasks)} alone: leave it out, or name a task"
        )
