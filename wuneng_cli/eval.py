"""``wuneng eval``: score a model, and compare it with a baseline on the same items."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wuneng_cli import options
from wuneng_cli.render import print_json, print_line, print_renderable, print_text
from wuneng_cli.report import leave_report

if TYPE_CHECKING:
    from wuneng.evaluate.controls.battery import ControlsReport
    from wuneng.evaluate.controls.wanted import Wanted
    from wuneng.evaluate.session import EvaluationReport

__all__ = ["EXAMPLES", "SHORT_HELP", "evaluate"]

SHORT_HELP = "Score a model and compare it with a baseline."
EXAMPLES = """Examples:

\b
  wuneng eval   the latest run on its held-out data
  wuneng eval runs/quickstart --state zero
                what is lost without the state
  wuneng eval runs/quickstart --controls all
                whose gain is it? each head, memory span
  wuneng eval runs/text --tasks reasoning --data-dir my-test-sets
  wuneng eval runs/text --baseline runs/text/mha-shift --tasks arc,piqa \\
                --limit 200
  wuneng eval path/to/llama --tasks mmlu --num-fewshot 5 --batch-size 8

Aliases: arc = arc_easy + arc_challenge; obqa = openbookqa; lambada = lambada_openai; reasoning =
arc_easy, arc_challenge, hellaswag, piqa, winogrande, openbookqa, boolq, sciq and lambada_openai.
Any other task of lm-evaluation-harness goes by its own name (mmlu, gsm8k, copa, ...). `validation`
is the held-out text of the recipe that a run was trained from, `synthetic` its synthetic tasks;
without --tasks, a run is scored on whichever of the two it has. `wuneng-suite` are generated tasks
in words (wuneng-suite-parity, -boxes, -chain, -needle, ...); `ruler` and its members take their
essays from the .txt and .md files of --data-dir. `questions` are those of .jsonl files of your own
there, whose rows have the fields question and answer, perhaps context and choices.

--data-dir: .jsonl and .jsonl.gz files, recognised by the fields of their rows: ARC, HellaSwag,
PIQA, WinoGrande, OpenBookQA, BoolQ, COPA, LAMBADA, SciQ, MMLU and GSM8K. The split is a word in
the file's name (train, valid, validation, dev, test); ARC files say easy or challenge there, and
LAMBADA's say lambada.
"""


@options.with_output
def evaluate(
    output: options.Output,
    model: options.Model = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            "-t",
            metavar="A,B",
            help="Tasks, groups and aliases. [default: the held-out data of the run's recipe]",
        ),
    ] = None,
    arm: options.Arm = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline",
            metavar="MODEL",
            help="Compare with this model on the same items: a directory, or an arm of MODEL's "
            "run. For a run the default is its arm mha (after an upgrade: the source), with "
            "--state the same model untouched; none compares with nothing.",
        ),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            "--data-dir", metavar="DIR", help="Read test sets from these files; no network."
        ),
    ] = None,
    include_path: Annotated[
        Path | None,
        typer.Option(
            "--include-path", metavar="DIR", help="Task files of your own (lm-eval YAML)."
        ),
    ] = None,
    fields: Annotated[
        str | None,
        typer.Option(
            "--fields",
            metavar="question=Q,answer=A",
            help="What the rows of --tasks questions call question, answer, context and choices. "
            "[default: as the run's recipe says, else these names]",
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="4k,16k",
            help="Tokens of the texts that ruler, babilong and wuneng-suite-needle make.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        options.count("--limit", "N", 1, "Only the first N items of each task."),
    ] = None,
    num_fewshot: Annotated[
        int | None,
        options.count(
            "--num-fewshot",
            "K",
            0,
            "Solved examples before each question. [default: the task's own number]",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option("--batch-size", metavar="N|auto", help="Sequences per forward call."),
    ] = "auto",
    state: Annotated[
        str,
        typer.Option(
            "--state",
            metavar="NAME",
            help="Change MODEL's state: keep, zero (silenced), permute (another text's readout), "
            "donor (another text's state), layers (another layer's), frozen:K (after K tokens), "
            "reset:K (every K tokens).",
        ),
    ] = "keep",
    controls: Annotated[
        str | None,
        typer.Option(
            "--controls",
            metavar="all|A,B",
            help="MODEL beside itself under each control: zero, permute, donor, layers, frozen[:K] "
            "and reset[:K] (without K a curve), attention (silenced), heads (each one alone).",
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = "auto",
    out: Annotated[
        Path | None,
        options.out(
            "Where eval.json (controls.json) goes. [default: the run, or runs/eval/<model>]"
        ),
    ] = None,
    log_samples: Annotated[
        bool,
        typer.Option(
            "--log-samples", help="Keep every item's prompt, target and answers in eval.json."
        ),
    ] = False,
    trust_remote_code: options.TrustRemoteCode = False,
    verify: options.Verify = True,
) -> None:
    """Score MODEL on evaluation tasks and, beside a baseline, say what the difference is worth:
    paired on the same items, with a 95 % interval, a p-value and the chance level.
    """
    from wuneng.device import environment, pick_device, require_one_process

    require_one_process()
    from wuneng.controls.names import parse_state_control
    from wuneng.evaluate.choice import (
        NO_BASELINE,
        choose_models,
        default_directory,
        default_tasks,
    )

    control = parse_state_control(state)
    # Before what takes seconds to import: a slip in a name is told at once.
    alone = NO_BASELINE if controls is not None else baseline
    chosen, other, remark = choose_models(model, alone, str(control), arm=arm)
    wanted = _wanted(controls, state, baseline)
    from wuneng.evaluate.controls.battery import run_controls
    from wuneng.evaluate.controls.report import FILE, write_controls
    from wuneng.evaluate.own_questions import parse_fields
    from wuneng.evaluate.results import result_file, write_report
    from wuneng.evaluate.session import EvaluationRequest, run_evaluation
    from wuneng.ops.backend import check_environment
    from wuneng.records import prove_writable

    check_environment()
    request = EvaluationRequest(
        model=chosen,
        baseline=other,
        tasks=default_tasks(chosen)
        if tasks is None
        else [name.strip() for name in tasks.split(",") if name.strip()],
        data_dir=data_dir,
        include_path=include_path,
        fields=None if fields is None else parse_fields(fields),
        lengths=None if lengths is None else _lengths(lengths),
        limit=limit,
        num_fewshot=num_fewshot,
        batch_size=_batch_size(batch_size),
        state=str(control),
        dtype=dtype,
        log_samples=log_samples,
        check=verify,
    )
    directory = out or default_directory(chosen)
    prove_writable(directory, "--out")  # found out now, not after an hour of evaluation

    def notify(message: str) -> None:
        if not output.quiet:
            print_line(message, stderr=True)

    if remark:
        notify(remark)
    place = pick_device(device or "auto")
    progress, command = not output.quiet and sys.stderr.isatty(), ["wuneng", *sys.argv[1:]]
    if wanted is not None:
        tried = run_controls(request, wanted, place, notify=notify, progress=progress)
        write_controls(tried, directory / FILE, environment(command))
        leave_report(directory)
        _print_controls(tried, directory / FILE, as_json=output.as_json, quiet=output.quiet)
        return
    report = run_evaluation(request, place, notify=notify, progress=progress)
    file = result_file(directory, str(control))
    write_report(report, file, environment(command))
    leave_report(directory)
    _print(report, file, as_json=output.as_json, quiet=output.quiet)


def _lengths(text: str) -> list[int]:
    from wuneng.errors import InputError
    from wuneng.recipe import parse_size

    try:
        found = [parse_size(part.strip()) for part in text.split(",")]
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint="--lengths") from None
    if min(found) < 1:
        raise typer.BadParameter("expected lengths from 1 token on", param_hint="--lengths")
    return list(dict.fromkeys(found))


def _wanted(controls: str | None, state: str, baseline: str | None) -> Wanted | None:
    """What --controls asks for. InputError beside options that mean another comparison."""
    if controls is None:
        return None
    from wuneng.errors import InputError
    from wuneng.evaluate.controls.wanted import parse_controls

    for name, given in (("--state", state != "keep"), ("--baseline", baseline is not None)):
        if given:
            raise InputError(
                f"--controls compares MODEL with itself; {name} asks for another comparison: give "
                "one of them"
            )
    return parse_controls(controls)


def _batch_size(text: str) -> int | str:
    if text == "auto":
        return text
    from wuneng.limits import LARGEST_COUNT

    short = len(text) <= len(str(LARGEST_COUNT))
    if not (short and text.isdecimal() and 1 <= int(text) <= LARGEST_COUNT):
        raise typer.BadParameter(
            f"expected a number from 1 to {LARGEST_COUNT}, or auto, got {text[:80]!r}",
            param_hint="--batch-size",
        )
    return int(text)


def _print(report: EvaluationReport, file: Path, *, as_json: bool, quiet: bool) -> None:
    from wuneng.evaluate.results import remarks, report_record, report_table

    if as_json:
        print_json({"file": str(file), **report_record(report, items=True)})
        return
    print_renderable(report_table(report))
    for line in () if quiet else remarks(report):
        print_text(line)
    print_line(f"\nEverything is in {file}.")


def _print_controls(report: ControlsReport, file: Path, *, as_json: bool, quiet: bool) -> None:
    from wuneng.evaluate.controls.report import controls_record, controls_tables, remarks

    if as_json:
        print_json({"file": str(file), **controls_record(report)})
        return
    for table in controls_tables(report):
        print_renderable(table)
    for line in () if quiet else remarks(report):
        print_text(line)
    print_line(f"\nEverything is in {file}.")
